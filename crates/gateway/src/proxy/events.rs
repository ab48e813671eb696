//! Server-sent events as text (WHATWG HTML §9.2.6): where lines and events end, whatever ends
//! them and however the stream is cut.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// What a stream may begin with; it belongs to no line.
pub(super) const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The lines of a piece of a stream, each without its end; the last may be unfinished.
pub(super) struct Lines<'a>(&'a [u8]);

/// A line, and what follows it.
struct Line<'a> {
    text: &'a [u8],
    is_whole: bool,
    rest: &'a [u8],
}

impl<'a> Line<'a> {
    fn split(stream: &'a [u8]) -> Self {
        let Some(at) = memchr2(b'\n', b'\r', stream) else {
            return Self {
                text: stream,
                is_whole: false,
                rest: &[],
            };
        };
        Self {
            text: &stream[..at],
            is_whole: true,
            rest: &stream[at + line_end(&stream[at..])..],
        }
    }
}

/// The length of the line end that `text` begins with; 0 if it begins with none.
fn line_end(text: &[u8]) -> usize {
    match text {
        [b'\r', b'\n', ..] => 2,
        [b'\r' | b'\n', ..] => 1,
        _ => 0,
    }
}

/// What stands before the line end that `text` ends with; `None` if it ends with none.
fn without_line_end(text: &[u8]) -> Option<&[u8]> {
    match text {
        [before @ .., b'\r', b'\n'] | [before @ .., b'\r' | b'\n'] => Some(before),
        _ => None,
    }
}

/// The value of a line that is a field of this name.
fn value<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    match line.strip_prefix(name.as_bytes())? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

/// How many lines of data begin in a piece of a stream, at its start or behind a line feed.
pub(super) fn data_lines(piece: &[u8]) -> u64 {
    const NAME: &[u8] = b"data:";
    let (mut rest, mut count) = (piece, u64::from(piece.starts_with(NAME)));
    while let Some(at) = memchr(b'\n', rest) {
        rest = &rest[at + 1..];
        // Events end with an empty line.
        while let [b'\n', after @ ..] = rest {
            rest = after;
        }
        count += u64::from(rest.starts_with(NAME));
    }
    count
}

/// The data of an event: the values of its `data` lines, one below the other.
pub(super) fn data(event: &[u8]) -> Vec<u8> {
    let mut values = Vec::new();
    for line in Lines(event) {
        if let Some(value) = value(line, "data") {
            if !values.is_empty() {
                values.push(b'\n');
            }
            values.extend_from_slice(value);
        }
    }
    values
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let line = Line::split(self.0);
        self.0 = line.rest;
        Some(line.text)
    }
}

/// How the start of a stream reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start<'a> {
    /// The first event that has data, with the empty line that ends it.
    Event(&'a [u8]),
    /// The first event is not complete, and nothing has come before it.
    Unfinished,
    /// Comments and empty events, which clients do not notice, and no whole event yet.
    Silent,
}

/// Looks for the first event of a stream.
pub(super) fn start(stream: &[u8]) -> Start<'_> {
    split_start(stream).0
}

/// Takes the first event that has data, and what stands before it, from a stream.
pub(super) fn take_event(stream: &mut BytesMut) -> Option<Bytes> {
    let (Start::Event(event), rest) = split_start(stream) else {
        return None;
    };
    let (length, end) = (event.len(), stream.len() - rest.len());
    let mut taken = stream.split_to(end).freeze();
    taken.advance(end - length);
    Some(taken)
}

/// The start of a stream, and what follows its first event.
fn split_start(stream: &[u8]) -> (Start<'_>, &[u8]) {
    let mut rest = stream.strip_prefix(BYTE_ORDER_MARK).unwrap_or(stream);
    let (mut event, mut has_data, mut silent) = (rest, false, false);
    while !rest.is_empty() {
        let line = Line::split(rest);
        if !line.is_whole {
            break;
        }
        rest = line.rest;
        has_data |= value(line.text, "data").is_some();
        if line.text.is_empty() {
            if has_data {
                return (Start::Event(&event[..event.len() - rest.len()]), rest);
            }
            (event, silent) = (rest, true);
        }
    }
    let start = if silent {
        Start::Silent
    } else {
        Start::Unfinished
    };
    (start, rest)
}

/// The longest end of a stream that means something: the last event of OpenAI's streams.
const LONGEST_END: usize = b"[DONE]\r\n\r\n".len();

/// Where in a stream of events the last piece ended.
#[derive(Debug, Default)]
pub(super) struct EventBoundary {
    /// The last bytes, in so far as there are so many.
    tail: [u8; LONGEST_END],
    length: usize,
    position: Position,
}

/// A place in a stream of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    /// At the start of a line, and a new event may begin with it.
    #[default]
    Between,
    /// Within a comment between two events.
    Comment,
    /// Within an event.
    Event,
}

impl EventBoundary {
    pub(super) fn pass(&mut self, piece: &[u8]) {
        if piece.is_empty() {
            return;
        }
        let before = Self { ..*self };
        self.push(piece);
        // Nearly every piece ends with an event.
        let line = without_line_end(self.tail());
        let ends_event = line.and_then(without_line_end).is_some();
        self.position = if ends_event {
            Position::Between
        } else {
            before.position_after(piece)
        };
    }

    fn push(&mut self, piece: &[u8]) {
        let new = &piece[piece.len().saturating_sub(LONGEST_END)..];
        self.tail.copy_within(new.len().., 0);
        self.tail[LONGEST_END - new.len()..].copy_from_slice(new);
        self.length = (self.length + new.len()).min(LONGEST_END);
    }

    fn tail(&self) -> &[u8] {
        &self.tail[LONGEST_END - self.length..]
    }

    /// The position behind a piece, line by line.
    fn position_after(&self, piece: &[u8]) -> Position {
        let mut position = self.position;
        let mut line_begins =
            position == Position::Between || without_line_end(self.tail()).is_some();
        let mut rest = piece;
        if let Some(left) = self.rest_of_mark() {
            let present = left.iter().zip(piece).take_while(|(a, b)| a == b).count();
            if present == left.len() {
                (position, line_begins) = (Position::Between, true);
                rest = &piece[present..];
            } else if present == piece.len() {
                return Position::Event;
            }
        }
        if self.tail().ends_with(b"\r") {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while !rest.is_empty() {
            let line = Line::split(rest);
            position = match (position, line_begins, line.text.first()) {
                (_, true, None) => Position::Between,
                (Position::Between, true, Some(b':')) => Position::Comment,
                (Position::Between, true, Some(_)) => Position::Event,
                (position, ..) => position,
            };
            if line.is_whole && position == Position::Comment {
                position = Position::Between;
            }
            line_begins = line.is_whole;
            rest = line.rest;
        }
        position
    }

    /// What is left of a byte order mark at the start of the stream, where that is.
    fn rest_of_mark(&self) -> Option<&'static [u8]> {
        let left = BYTE_ORDER_MARK.get(self.length..)?;
        let begun = self.tail() == BYTE_ORDER_MARK.get(..self.length)?;
        (begun && !left.is_empty()).then_some(left)
    }

    /// The stream has said that it is complete.
    pub(super) fn is_done(&self) -> bool {
        let data = without_line_end(self.tail()).and_then(without_line_end);
        data.is_some_and(|data| data.ends_with(b"[DONE]"))
    }

    /// Whether one more event can follow: between two, or before the first.
    pub(super) fn accepts_event(&self) -> bool {
        self.position == Position::Between && !self.is_done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pieces: &[&[u8]]) -> (bool, bool) {
        let mut boundary = EventBoundary::default();
        for piece in pieces {
            boundary.pass(piece);
        }
        (boundary.accepts_event(), boundary.is_done())
    }

    /// The same, with the stream in one piece and cut at every byte.
    fn after_all(stream: &str) -> (bool, bool) {
        let whole = after(&[stream.as_bytes()]);
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(after(&bytes), whole, "{stream:?} byte by byte");
        for at in 0..stream.len() {
            let (first, second) = stream.as_bytes().split_at(at);
            assert_eq!(after(&[first, second]), whole, "{stream:?} cut at {at}");
        }
        whole
    }

    const LINE_ENDS: [&str; 3] = ["\n", "\r", "\r\n"];

    #[test]
    fn event_may_follow_an_empty_line_whatever_ends_lines() {
        assert_eq!(after_all(""), (true, false));
        for first in LINE_ENDS {
            for second in LINE_ENDS {
                if (first, second) == ("\r", "\n") {
                    continue; // One line end, not two.
                }
                let end = format!("{first}{second}");
                assert_eq!(
                    after_all(&format!("data: 1{end}")),
                    (true, false),
                    "{end:?}"
                );
                let done = format!("data: 1{end}data: [DONE]{end}");
                assert_eq!(after_all(&done), (false, true), "{end:?}");
                let more = format!("{done}data: 2{end}");
                assert_eq!(after_all(&more), (true, false), "{end:?}");
            }
            assert_eq!(after_all(&format!("data: 1{first}")), (false, false));
            assert_eq!(after_all(&format!("data: [DONE]{first}")), (false, false));
            assert_eq!(after_all(first), (true, false), "{first:?}");
        }
    }

    #[test]
    fn event_may_follow_comments_between_events_only() {
        for (stream, accepts) in [
            (": x", false),
            (": x\n", true),
            (": x\r: y\r\n", true),
            (":\n", true),
            ("data: 1\n\n: x\n", true),
            ("data: 1\n\n: x", false),
            ("data: 1\n: x\n", false),
            ("data: 1\n: x\n\n", true),
            ("data: 1\n\n: x\ndata: 2\n", false),
            ("id: 7\n", false),
            ("id: 7\n\n", true),
        ] {
            assert_eq!(after_all(stream).0, accepts, "{stream:?}");
        }
    }

    #[test]
    fn byte_order_mark_belongs_to_no_line() {
        assert_eq!(after_all("\u{feff}"), (true, false));
        assert_eq!(after_all("\u{feff}: x\n"), (true, false));
        assert_eq!(after_all("\u{feff}data: 1\n"), (false, false));
        assert_eq!(after_all("\u{feff}data: 1\n\n"), (true, false));
        assert!(!after(&["\u{feff}".as_bytes().get(..2).unwrap()]).0);
        assert!(
            !after_all("\n\u{feff}").0,
            "only the first character is one"
        );
    }

    #[test]
    fn first_event_ends_with_its_empty_line_whatever_ends_lines() {
        for (stream, event) in [
            ("data: 1\n\ndata: 2\n\n", "data: 1\n\n"),
            ("data: 1\r\n\r\ndata: 2", "data: 1\r\n\r\n"),
            ("data: 1\r\rdata: 2\r\r", "data: 1\r\r"),
            ("id: 7\ndata: 1\n\n", "id: 7\ndata: 1\n\n"),
            ("data: 1\n\r\n", "data: 1\n\r\n"),
            ("data\n\n", "data\n\n"),
            ("\u{feff}data: 1\n\n", "data: 1\n\n"),
            (
                ": x\n\n\nid: 7\n\nevent: e\ndata: 1\n\n",
                "event: e\ndata: 1\n\n",
            ),
            (": x\r\ndata: 1\r\n\r\n", ": x\r\ndata: 1\r\n\r\n"),
        ] {
            assert_eq!(
                start(stream.as_bytes()),
                Start::Event(event.as_bytes()),
                "{stream:?}"
            );
        }
    }

    #[test]
    fn start_without_an_event_is_unfinished_or_silent() {
        for part in ["", "data: 1", "data: 1\n", "id: 7\r\ndata: 1\r\n", ": x\n"] {
            assert_eq!(start(part.as_bytes()), Start::Unfinished, "{part:?}");
        }
        for silent in [
            "\n",
            ": x\n\n",
            ": x\n\ndata: 1\n",
            "database: 1\n\n",
            "\u{feff}\r",
        ] {
            assert_eq!(start(silent.as_bytes()), Start::Silent, "{silent:?}");
        }
    }

    #[test]
    fn data_of_an_event_is_that_of_all_its_lines() {
        let event = b"event: e\rdata: {\rdata:}\r\n: data: 9\ndata\n\n";
        assert_eq!(data(event), b"{\n}\n");
    }
}
