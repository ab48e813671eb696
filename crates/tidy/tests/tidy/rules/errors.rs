//! Errors are types, not strings.

use crate::report::{Breach, check};
use crate::rust::{Source, behind_angle, split, workspace};

#[test]
fn errors_are_types_not_strings() {
    let sources = workspace().sources.iter();
    let shipped = sources.filter(|source| source.path.split('/').all(|part| part != "tests"));
    let found: Vec<_> = shipped.flat_map(string_errors).collect();
    check("errors_are_types_not_strings", 0, &found);
}

fn string_errors(source: &Source) -> Vec<Breach> {
    let tokens = &source.lexed.tokens;
    let mut found = Vec::new();
    for at in 0..tokens.len().saturating_sub(1) {
        if tokens[at].text != "Result" || tokens[at + 1].text != "<" {
            continue;
        }
        let arguments = split(&tokens[at + 2..behind_angle(tokens, at + 1) - 1]);
        let error = arguments.get(1..).and_then(|errors| errors.last());
        if error.is_some_and(|error| error.len() == 1 && error[0].text == "String") {
            found.push(Breach::at(
                &source.path,
                tokens[at].line,
                "a String for an error",
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &'static str) -> usize {
        string_errors(&Source::new("made/src/lib.rs".to_owned(), text)).len()
    }

    #[test]
    fn a_string_error_is_found() {
        assert_eq!(count("fn f() -> Result<Vec<(u8, u8)>, String> {}"), 1);
        assert_eq!(count("type R<T> = io::Result<Result<T, String>, E>;"), 1);
    }

    #[test]
    fn a_string_result_is_none() {
        assert_eq!(
            count("fn f() -> Result<Map<u8, String>> {} fn g() -> Result<String, E> {}"),
            0
        );
        assert_eq!(
            count("fn f() -> io::Result<String> {} // Result<u8, String>"),
            0
        );
    }
}
