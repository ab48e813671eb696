//! The text of a simulated model: one word per token, determined by a seed.

use std::ops::Range;

use crate::engine::{BYTES_PER_TOKEN, mix};

/// Each word is, with a space, as long as a token ([`BYTES_PER_TOKEN`]).
const WORDS: [&str; 64] = [
    "the", "and", "for", "are", "but", "not", "you", "all", "any", "can", "had", "her", "was",
    "one", "our", "out", "day", "get", "has", "him", "his", "how", "man", "new", "now", "old",
    "see", "two", "way", "who", "boy", "did", "its", "let", "put", "say", "she", "too", "use",
    "sun", "sea", "sky", "ice", "air", "oak", "elm", "ash", "fir", "fox", "owl", "hen", "cat",
    "dog", "bee", "ant", "cow", "red", "tan", "low", "mid", "top", "end", "far", "key",
];

/// The word of token `at` in the text of `seed`.
pub(crate) fn word(seed: u64, at: u32) -> &'static str {
    WORDS[(mix(seed, u64::from(at)) % WORDS.len() as u64) as usize]
}

/// The token's id: its four bytes (a space, then the word), little-endian.
pub(crate) fn token_id(seed: u64, at: u32) -> u32 {
    let mut piece = [b' '; BYTES_PER_TOKEN];
    for (to, from) in piece[1..].iter_mut().zip(word(seed, at).bytes()) {
        *to = from;
    }
    u32::from_le_bytes(piece)
}

/// A simulated log probability, between -4 and 0.
pub(crate) fn logprob(seed: u64, at: u32) -> f64 {
    -((mix(seed, u64::from(at)) >> 52) as f64) / 1024.0
}

/// A simulated score, 0 to 1.
pub(crate) fn score(seed: u64) -> f64 {
    (mix(seed, 0) >> 40) as f64 / (1_u64 << 24) as f64
}

/// Appends tokens to a text; each but token 0 begins with a space.
pub(crate) fn append_tokens(seed: u64, tokens: Range<u32>, text: &mut String) {
    for at in tokens {
        if at > 0 {
            text.push(' ');
        }
        text.push_str(word(seed, at));
    }
}

/// Splits a text into token ids; [`detokenize`] is the inverse.
pub(crate) fn tokenize(text: &str) -> Vec<u32> {
    let pieces = text.as_bytes().chunks(BYTES_PER_TOKEN);
    let id = |piece: &[u8]| {
        let mut bytes = [0; BYTES_PER_TOKEN];
        bytes
            .iter_mut()
            .zip(piece)
            .for_each(|(to, from)| *to = *from);
        u32::from_le_bytes(bytes)
    };
    pieces.map(id).collect()
}

/// The text of ids from [`tokenize`]; other ids give arbitrary characters.
pub(crate) fn detokenize(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .filter(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_and_its_space_are_one_token_long() {
        assert!(WORDS.iter().all(|word| word.len() + 1 == BYTES_PER_TOKEN));
    }

    #[test]
    fn a_text_survives_tokenizing() {
        for text in ["", "a", "hello world", "naïve 日本語"] {
            assert_eq!(detokenize(&tokenize(text)), text);
        }
    }

    #[test]
    fn token_ids_detokenize_to_the_words() {
        let mut text = String::new();
        append_tokens(7, 0..5, &mut text);
        let ids: Vec<u32> = (0..5).map(|at| token_id(7, at)).collect();
        assert_eq!(detokenize(&ids).trim_start(), text);
    }
}
