//! Comments are subject, verb, object; people are named by what they are.

use crate::report::{Breach, check};
use crate::rust::{Source, workspace};

/// Budget, to be lowered to 10: a few may be the right words.
const MAX_WORDS: usize = 0;

const WORDS: [&str; 6] = ["who", "whoever", "nobody", "somebody", "tells", "told"];

#[test]
fn comments_speak_plain_english() {
    let found: Vec<_> = workspace().sources.iter().flat_map(riddles).collect();
    check("comments_speak_plain_english", MAX_WORDS, &found);
}

fn riddles(source: &Source) -> Vec<Breach> {
    let mut found = Vec::new();
    for comment in &source.lexed.comments {
        let words = comment.text.split(|letter: char| !letter.is_alphanumeric());
        for word in words.filter(|word| WORDS.contains(&word.to_lowercase().as_str())) {
            let what = format!("{word}: {}", comment.text.trim());
            found.push(Breach::at(&source.path, comment.line, &what));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &'static str) -> usize {
        riddles(&Source::new("made/src/lib.rs".to_owned(), text)).len()
    }

    #[test]
    fn words_count_in_comments_of_all_kinds() {
        assert_eq!(
            count("//! Who tells?\n/// Nobody.\nfn f() {} // whoever was told"),
            5
        );
        assert_eq!(count("/* somebody\n who's there */"), 2);
    }

    #[test]
    fn code_strings_and_longer_words_do_not_count() {
        assert_eq!(
            count("fn who() { \"nobody\" } // whole, whose, untold, foretells"),
            0
        );
    }
}
