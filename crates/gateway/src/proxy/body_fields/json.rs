//! JSON as SGLang's parsers take it, read in place.
//!
//! The grammar is that of RFC 8259, and what Python's `json` takes beyond it: a byte order mark,
//! `NaN`, `Infinity`, `-Infinity`, halves of surrogate pairs. Releases of SGLang differ in which
//! parser they use, so the worker has the last word.

use std::ops::Range;

/// Levels of nesting. SGLang's parsers stop at 1024 (`orjson`) or a little earlier (Python).
const MAX_DEPTH: usize = 1024;

/// Why bytes are not JSON, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) what: &'static str,
    pub(super) at: usize,
}

type Parsed<T> = Result<T, SyntaxError>;

/// Sees the strings of a value and the structure around them. Elements of an array have an empty
/// key.
pub(super) trait Visitor {
    /// An object or an array begins.
    fn open(&mut self, _key: &[u8]) {}
    /// It ends before `end`.
    fn close(&mut self, _end: usize) {}
    /// A string's content, escapes included.
    fn string(&mut self, _key: &[u8], _content: Range<usize>) {}
}

/// Sees nothing.
pub(super) struct Skip;

impl Visitor for Skip {}

/// A place in a body.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The containers that are open.
struct Nesting {
    /// Their kinds, a bit each: set for an object.
    objects: [u64; MAX_DEPTH / 64],
    depth: usize,
    /// What closes the innermost; 0 outside of all.
    closing: u8,
}

impl Nesting {
    fn new() -> Self {
        Self {
            objects: [0; MAX_DEPTH / 64],
            depth: 0,
            closing: 0,
        }
    }

    /// Opens an object (`{`) or an array; `None` when too many are open.
    fn open(&mut self, bracket: u8) -> Option<()> {
        let word = self.objects.get_mut(self.depth / 64)?;
        let bit = 1 << (self.depth % 64);
        if bracket == b'{' {
            *word |= bit;
            self.closing = b'}';
        } else {
            *word &= !bit;
            self.closing = b']';
        }
        self.depth += 1;
        Some(())
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.closing = match self.depth.checked_sub(1) {
            None => 0,
            Some(outer) => {
                let word = self.objects.get(outer / 64).copied().unwrap_or_default();
                let object = word & (1 << (outer % 64)) != 0;
                if object { b'}' } else { b']' }
            }
        };
    }
}

impl<'a> Scanner<'a> {
    /// At the beginning, after a byte order mark.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let at = if bytes.starts_with(b"\xef\xbb\xbf") {
            3
        } else {
            0
        };
        Self { bytes, at }
    }

    /// At a place further on.
    pub(super) fn starting_at(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn body(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn slice(&self, range: Range<usize>) -> &'a [u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// The next byte that is no white space.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Passes `byte` if it is next.
    pub(super) fn pass(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, byte: u8, what: &'static str) -> Parsed<()> {
        if self.pass(byte) {
            Ok(())
        } else {
            self.fail(what)
        }
    }

    /// Refuses what follows, white space aside.
    pub(super) fn expect_end(&mut self) -> Parsed<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.fail("trailing characters"),
        }
    }

    fn fail<T>(&self, what: &'static str) -> Parsed<T> {
        let ended = self.at >= self.bytes.len();
        Err(SyntaxError {
            what: if ended { "unexpected end" } else { what },
            at: self.at,
        })
    }

    /// A member's name, escapes included, and its colon.
    pub(super) fn key(&mut self) -> Parsed<Range<usize>> {
        if self.peek() != Some(b'"') {
            return self.fail("expected a name in double quotes");
        }
        let name = self.string()?;
        self.expect(b':', "expected ':'")?;
        Ok(name)
    }

    /// A string's content, escapes included; its quote is next.
    fn string(&mut self) -> Parsed<Range<usize>> {
        self.at += 1;
        let start = self.at;
        loop {
            self.at += plain_len(self.slice(self.at..self.bytes.len()));
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(start..self.at - 1);
                }
                Some(b'\\') => self.escape()?,
                _ => return self.fail("control character in a string"),
            }
        }
    }

    fn escape(&mut self) -> Parsed<()> {
        let escape = self.slice(self.at..self.bytes.len().min(self.at + 6));
        self.at += match escape {
            [
                _,
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't',
                ..,
            ] => 2,
            [_, b'u', digits @ ..]
                if digits.len() == 4 && digits.iter().all(u8::is_ascii_hexdigit) =>
            {
                6
            }
            _ => return self.fail("invalid escape"),
        };
        Ok(())
    }

    /// Passes a value, and shows it to `visitor`. Returns where it is.
    pub(super) fn value(&mut self, visitor: &mut impl Visitor) -> Parsed<Range<usize>> {
        self.peek();
        let start = self.at;
        let mut nesting = Nesting::new();
        let mut key: &[u8] = b"";
        loop {
            match self.peek() {
                Some(b'"') => {
                    let content = self.string()?;
                    visitor.string(key, content);
                }
                Some(bracket @ (b'{' | b'[')) => {
                    if nesting.open(bracket).is_none() {
                        return self.fail("nested too deep");
                    }
                    self.at += 1;
                    visitor.open(key);
                    if !self.pass(nesting.closing) {
                        key = self.next_key(&nesting)?;
                        continue;
                    }
                    nesting.close();
                    visitor.close(self.at);
                }
                _ => self.scalar()?,
            }
            match self.after_value(&mut nesting, visitor)? {
                Some(next) => key = next,
                None => return Ok(start..self.at),
            }
        }
    }

    /// After a value: the key of the next one, or `None` when the outermost has ended.
    fn after_value(
        &mut self,
        nesting: &mut Nesting,
        visitor: &mut impl Visitor,
    ) -> Parsed<Option<&'a [u8]>> {
        while nesting.depth > 0 {
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    return self.next_key(nesting).map(Some);
                }
                Some(byte) if byte == nesting.closing => {
                    self.at += 1;
                    nesting.close();
                    visitor.close(self.at);
                }
                _ => return self.fail("expected ',' or a closing bracket"),
            }
        }
        Ok(None)
    }

    /// The key of the next value in the innermost container; empty in an array.
    fn next_key(&mut self, nesting: &Nesting) -> Parsed<&'a [u8]> {
        if nesting.closing == b'}' {
            self.key().map(|name| self.slice(name))
        } else {
            Ok(b"")
        }
    }

    /// A number or one of the words.
    fn scalar(&mut self) -> Parsed<()> {
        let rest = self.slice(self.at..self.bytes.len());
        let words: [&[u8]; 6] = [
            b"true",
            b"false",
            b"null",
            b"NaN",
            b"Infinity",
            b"-Infinity",
        ];
        let length = match rest.first() {
            Some(b'0'..=b'9') => number_len(rest),
            _ => words
                .into_iter()
                .find(|word| rest.starts_with(word))
                .map_or_else(|| number_len(rest), |word| Some(word.len())),
        };
        match length {
            Some(length) => {
                self.at += length;
                Ok(())
            }
            None => self.fail("expected a value"),
        }
    }
}

/// The length of the number that `bytes` begin with.
fn number_len(bytes: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let rest = bytes.get(from..).unwrap_or_default();
        rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let some_digits = |from: usize| Some(digits(from)).filter(|count| *count > 0);
    let mut at = usize::from(bytes.first() == Some(&b'-'));
    at += if bytes.get(at) == Some(&b'0') {
        1
    } else {
        some_digits(at)?
    };
    if bytes.get(at) == Some(&b'.') {
        at += 1 + some_digits(at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        at += some_digits(at)?;
    }
    Some(at)
}

/// Whether a string's content cannot go on with this byte as it is.
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// The number of bytes at the beginning that are not special.
#[inline]
fn plain_len(bytes: &[u8]) -> usize {
    // Most strings are short.
    let mut length = 0;
    while let Some(word) = bytes.get(length..).and_then(|rest| rest.first_chunk()) {
        match special_byte(u64::from_le_bytes(*word)) {
            Some(at) => return length + at,
            None => length += 8,
        }
        if length == 24 {
            length += plain_chunks::<64>(bytes.get(length..).unwrap_or_default());
            length += plain_chunks::<16>(bytes.get(length..).unwrap_or_default());
        }
    }
    let rest = bytes.get(length..).unwrap_or_default();
    length + rest.iter().take_while(|byte| !is_special(**byte)).count()
}

/// The length of the whole chunks at the beginning that have no special byte.
fn plain_chunks<const SIZE: usize>(bytes: &[u8]) -> usize {
    // Without an early exit within a chunk, and with bytes for verdicts, the compiler compares
    // sixteen bytes at once.
    let verdict = |found: u8, byte: &u8| {
        let quote_or_escape = u8::from(*byte == b'"') | u8::from(*byte == b'\\');
        found | quote_or_escape | u8::from(*byte < 0x20)
    };
    let plain = |chunk: &&[u8; SIZE]| chunk.iter().fold(0, verdict) == 0;
    SIZE * bytes.as_chunks().0.iter().take_while(plain).count()
}

/// Where the first special byte of eight is (Mycroft's test for a byte below `n`).
fn special_byte(word: u64) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let found = (below(word, 0x20) | is(b'"') | is(b'\\')) & (ONES << 7);
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

/// Refuses bytes that are not UTF-8; halves of surrogate pairs count as characters.
pub(super) fn check_utf8(bytes: &[u8]) -> Parsed<()> {
    if simdutf8::basic::from_utf8(bytes).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    while let Err(error) = std::str::from_utf8(bytes.get(at..).unwrap_or_default()) {
        at += error.valid_up_to();
        let what = "invalid UTF-8";
        match bytes.get(at..at + 3) {
            Some([0xed, 0xa0..=0xbf, 0x80..=0xbf]) => at += 3,
            _ => return Err(SyntaxError { what, at }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_json(text: &[u8]) -> bool {
        let mut scanner = Scanner::new(text);
        check_utf8(text).is_ok() && scanner.value(&mut Skip).is_ok() && scanner.peek().is_none()
    }

    #[test]
    fn json_of_the_standard_is_accepted() {
        for text in [
            "{}",
            "[]",
            " { \"a\" : [ 1 , -0.5e+3 , 0 , 1E9 , true , false , null ] , \"\" : {} }\r\n",
            r#""\"\\\/\b\f\n\r\t\u00e9""#,
            "[[],{},[[{}]]]",
        ] {
            assert!(is_json(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn json_that_python_takes_is_accepted() {
        for text in [
            b"\xef\xbb\xbf[1]".as_slice(),
            b"[NaN, Infinity, -Infinity, 1e999]",
            br#"["\ud83d", "\udc00\ud800"]"#,
            b"[\"\xed\xa0\xbd\"]",
            br#"{"a":1,"a":2}"#,
        ] {
            assert!(is_json(text), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_no_parser_takes_is_refused() {
        let control = [b'"', 0x1f, b'"'];
        for text in [
            b"".as_slice(),
            b"{",
            b"{}x",
            b"{,}",
            b"{\"a\"}",
            b"{\"a\":1,}",
            b"[1,]",
            b"[1 2]",
            b"[1}",
            b"{\"a\":1]",
            b"01",
            b"-",
            b"+1",
            b"1.",
            b".5",
            b"1e",
            b"-NaN",
            b"nan",
            b"tru",
            b"'a'",
            b"\"a",
            br#""\x""#,
            br#""\u12g4""#,
            br#""\u12"#,
            b"\"\\",
            b"\"\xff\"",
            b"\"\xed\xa0\"",
            b"\xef\xbb\xbf\xef\xbb\xbf1",
            b"\x0b1",
            &control,
        ] {
            assert!(!is_json(text), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(is_json(nested(MAX_DEPTH).as_bytes()));
        assert!(!is_json(nested(MAX_DEPTH + 1).as_bytes()));
        let mixed = ["{\"a\":[".repeat(512), "]}".repeat(512)].concat();
        assert!(is_json(mixed.as_bytes()));
    }

    proptest! {
        #[test]
        fn a_string_ends_where_its_first_special_byte_is(
            plain in prop::collection::vec(0x23..0x5c_u8, 0..200),
            special in prop::sample::select(vec![b'"', b'\\', 0, 0x0a, 0x1f]),
            rest in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let bytes = [plain.as_slice(), &[special], &rest].concat();
            prop_assert_eq!(plain_len(&bytes), plain.len());
            prop_assert_eq!(plain_len(&plain), plain.len());
        }

        #[test]
        fn bytes_beyond_ascii_are_plain(bytes in prop::collection::vec(0x80..=0xff_u8, 0..100)) {
            prop_assert_eq!(plain_len(&bytes), bytes.len());
        }
    }
}
