//! The text a simulated model says: one word per token, decided by a seed.

use crate::engine::{BYTES_PER_TOKEN, mix};

/// With the space between them these words are exactly as long as a token counts.
const WORDS: [&str; 64] = [
    "the", "and", "for", "are", "but", "not", "you", "all", "any", "can", "had", "her", "was",
    "one", "our", "out", "day", "get", "has", "him", "his", "how", "man", "new", "now", "old",
    "see", "two", "way", "who", "boy", "did", "its", "let", "put", "say", "she", "too", "use",
    "sun", "sea", "sky", "ice", "air", "oak", "elm", "ash", "fir", "fox", "owl", "hen", "cat",
    "dog", "bee", "ant", "cow", "red", "tan", "low", "mid", "top", "end", "far", "key",
];

/// The word of token `at` of the answer that `seed` decides.
pub(crate) fn word(seed: u64, at: u32) -> &'static str {
    WORDS[(mix(seed, u64::from(at)) % WORDS.len() as u64) as usize]
}

/// The token's id: its four bytes (a space, then the word), little-endian.
pub(crate) fn word_id(seed: u64, at: u32) -> u32 {
    let mut piece = [b' '; BYTES_PER_TOKEN];
    for (to, from) in piece[1..].iter_mut().zip(word(seed, at).bytes()) {
        *to = from;
    }
    u32::from_le_bytes(piece)
}

/// A made-up log probability, between -4 and 0.
pub(crate) fn logprob(seed: u64, at: u32) -> f64 {
    -((mix(seed, u64::from(at)) >> 52) as f64) / 1024.0
}

/// A made-up score, 0 to 1.
pub(crate) fn unit(seed: u64) -> f64 {
    (mix(seed, 0) >> 40) as f64 / (1_u64 << 24) as f64
}

/// Adds tokens `from..to` to a text; all but the very first bring a space along.
pub(crate) fn speak(seed: u64, from: u32, to: u32, text: &mut String) {
    for at in from..to {
        if at > 0 {
            text.push(' ');
        }
        text.push_str(word(seed, at));
    }
}

/// Splits a text into token ids that [`detokenize`] turns back.
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

/// The text behind ids made by [`tokenize`]; other ids give odd characters.
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
    fn every_word_with_its_space_is_one_token_long() {
        assert!(WORDS.iter().all(|word| word.len() + 1 == BYTES_PER_TOKEN));
    }

    #[test]
    fn a_text_survives_tokenizing() {
        for text in ["", "a", "hello world", "naïve 日本語"] {
            assert_eq!(detokenize(&tokenize(text)), text);
        }
    }

    #[test]
    fn words_and_their_ids_agree() {
        let mut text = String::new();
        speak(7, 0, 5, &mut text);
        let ids: Vec<u32> = (0..5).map(|at| word_id(7, at)).collect();
        assert_eq!(detokenize(&ids).trim_start(), text);
    }
}
