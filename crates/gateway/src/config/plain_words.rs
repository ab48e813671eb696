//! Words for what serde expects.

/// Serde's words for types, and words for readers.
const WORDS: [(&str, &str); 9] = [
    ("expected u16", "expected an integer from 0 to 65535"),
    ("expected u32", "expected an integer from 0 to 2^32-1"),
    ("expected u64", "expected an integer from 0 to 2^64-1"),
    ("expected usize", "expected an integer from 0 to 2^64-1"),
    ("expected i32", "expected an integer from -2^31 to 2^31-1"),
    ("expected f64", "expected a number"),
    ("expected a sequence", "expected a list"),
    ("expected a map", "expected a mapping"),
    (
        "expected a tuple of size 2",
        "expected a list of two: URL and port, or null",
    ),
];

/// A message of serde's in plain words.
pub fn plain_words(message: &str) -> String {
    let replace = |text: String, (of_serde, plain): &(&str, &str)| text.replace(of_serde, plain);
    WORDS.iter().fold(message.to_owned(), replace)
}
