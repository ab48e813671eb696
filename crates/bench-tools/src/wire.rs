//! Framing of HTTP/1.1 messages, for both directions.

use std::str;

/// Bytes of a head that are parsed at most.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;

/// How the body of a message is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `content-length`, 0 when there is none.
    Length(usize),
    /// `transfer-encoding: chunked`.
    Chunked,
}

/// A head that is whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head<T> {
    /// Status or path.
    pub(crate) start: T,
    /// Bytes up to and including the empty line.
    pub(crate) bytes: usize,
    pub(crate) framing: Framing,
    /// `connection: close`.
    pub(crate) closes: bool,
}

/// Not HTTP/1.1, or a head of more than [`MAX_HEAD`] bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The method and path of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) is_get: bool,
    pub(crate) path: String,
}

/// The head of a response with its status; `None` while it is incomplete.
pub(crate) fn response_head(bytes: &[u8]) -> Result<Option<Head<u16>>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(bytes).map_err(|_| Malformed)? else {
        return incomplete(bytes);
    };
    let start = response.code.ok_or(Malformed)?;
    head(start, length, response.headers).map(Some)
}

/// The head of a request; `None` while it is incomplete.
pub(crate) fn request_head(bytes: &[u8]) -> Result<Option<Head<Target>>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes).map_err(|_| Malformed)? else {
        return incomplete(bytes);
    };
    let path = request.path.ok_or(Malformed)?;
    let start = Target {
        is_get: request.method == Some("GET"),
        path: path.split('?').next().unwrap_or_default().to_owned(),
    };
    head(start, length, request.headers).map(Some)
}

fn incomplete<T>(bytes: &[u8]) -> Result<Option<Head<T>>, Malformed> {
    (bytes.len() <= MAX_HEAD).then_some(None).ok_or(Malformed)
}

fn head<T>(start: T, bytes: usize, headers: &[httparse::Header<'_>]) -> Result<Head<T>, Malformed> {
    let mut head = Head {
        start,
        bytes,
        framing: Framing::Length(0),
        closes: false,
    };
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = str::from_utf8(header.value).map_err(|_| Malformed)?;
            head.framing = Framing::Length(value.trim().parse().map_err(|_| Malformed)?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            head.framing = Framing::Chunked;
            break;
        } else if header.name.eq_ignore_ascii_case("connection") {
            head.closes = header.value.eq_ignore_ascii_case(b"close");
        }
    }
    Ok(head)
}

/// Reads a body as it comes, whatever the boundaries of the reads.
#[derive(Debug)]
pub(crate) struct Body {
    state: State,
    events: Events,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bytes that are left of a body with a length.
    Length(usize),
    /// In the line with a chunk's size.
    Size {
        so_far: usize,
        in_extension: bool,
    },
    /// Bytes that are left of a chunk and of the CRLF behind it.
    Chunk(usize),
    /// Behind the last chunk: bytes of the current trailer line.
    Trailer(usize),
    Done,
}

/// What a piece of a body was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Bytes that belong to the message.
    pub(crate) used: usize,
    /// Server-sent events that ended in it.
    pub(crate) events: u64,
    /// Whether the body ends with it.
    pub(crate) done: bool,
}

impl Body {
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => SIZE,
        };
        let events = Events::default();
        Self { state, events }
    }

    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Piece, Malformed> {
        let mut piece = Piece::default();
        while piece.used < bytes.len() && self.state != State::Done {
            let rest = &bytes[piece.used..];
            piece.used += match self.state {
                State::Length(left) => self.length(rest, left),
                State::Size { .. } => self.size(rest[0])?,
                State::Chunk(left) => self.chunk(rest, left, &mut piece.events)?,
                State::Trailer(before) => self.trailer(rest[0], before),
                State::Done => 0,
            };
        }
        piece.done = self.state == State::Done;
        Ok(piece)
    }

    fn length(&mut self, bytes: &[u8], left: usize) -> usize {
        let used = left.min(bytes.len());
        self.state = if used == left {
            State::Done
        } else {
            State::Length(left - used)
        };
        used
    }

    fn size(&mut self, byte: u8) -> Result<usize, Malformed> {
        let State::Size {
            so_far,
            in_extension,
        } = self.state
        else {
            return Err(Malformed);
        };
        self.state = match byte {
            b'\n' if so_far == 0 => State::Trailer(0),
            b'\n' => State::Chunk(so_far + 2),
            b'\r' => self.state,
            _ if in_extension || byte == b';' => State::Size {
                so_far,
                in_extension: true,
            },
            _ => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)? as usize;
                let grown = so_far.checked_mul(16).ok_or(Malformed)? + digit;
                State::Size {
                    so_far: grown,
                    in_extension,
                }
            }
        };
        Ok(1)
    }

    fn chunk(&mut self, bytes: &[u8], left: usize, events: &mut u64) -> Result<usize, Malformed> {
        let used = left.min(bytes.len());
        // The last two bytes are the CRLF behind the chunk.
        let content = left.saturating_sub(2).min(used);
        *events += self.events.feed(&bytes[..content]);
        if used > content && bytes[content..used].iter().any(|it| !b"\r\n".contains(it)) {
            return Err(Malformed);
        }
        self.state = if used == left {
            SIZE
        } else {
            State::Chunk(left - used)
        };
        Ok(used)
    }

    fn trailer(&mut self, byte: u8, before: usize) -> usize {
        self.state = match byte {
            b'\n' if before == 0 => State::Done,
            b'\n' => State::Trailer(0),
            b'\r' => self.state,
            _ => State::Trailer(before + 1),
        };
        1
    }
}

const SIZE: State = State::Size {
    so_far: 0,
    in_extension: false,
};

/// Counts server-sent events: each ends with an empty line.
#[derive(Debug, Default)]
struct Events {
    /// Whether the last byte ended a line.
    at_line_start: bool,
}

impl Events {
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        let mut ended = 0;
        let mut line = 0;
        for newline in memchr::memchr_iter(b'\n', bytes) {
            let empty = newline == line && (line > 0 || self.at_line_start);
            ended += u64::from(empty);
            line = newline + 1;
        }
        if let Some(last) = bytes.last() {
            self.at_line_start = *last == b'\n';
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"9;x=y\r\ndata: 1\n\n\r\na\r\ndata: 22\n\n\r\n5\r\ndata:\r\n2\r\n 3\r\n2\r\n\n\n\r\n0\r\nt: v\r\n\r\nrest";

    #[test]
    fn a_response_head_has_status_and_framing() {
        let bytes = b"HTTP/1.1 429 Too Many\r\nContent-Length: 12\r\nConnection: close\r\n\r\nxx";
        let head = response_head(bytes).unwrap().unwrap();
        assert_eq!(
            (head.start, head.framing, head.closes),
            (429, Framing::Length(12), true)
        );
        assert_eq!(&bytes[head.bytes..], b"xx");
        assert_eq!(response_head(&bytes[..30]), Ok(None));
        assert_eq!(response_head(b"SSH-2.0\r\n\r\n"), Err(Malformed));
    }

    #[test]
    fn a_request_head_has_a_path_without_its_query() {
        let bytes = b"POST /generate?a=b HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n";
        let head = request_head(bytes).unwrap().unwrap();
        let path = "/generate".to_owned();
        assert_eq!(
            head.start,
            Target {
                is_get: false,
                path
            }
        );
        assert_eq!(head.framing, Framing::Chunked);
    }

    #[test]
    fn a_length_may_come_in_pieces() {
        let mut body = Body::new(Framing::Length(5));
        assert!(!body.feed(b"abc").unwrap().done);
        let piece = body.feed(b"defg").unwrap();
        assert_eq!((piece.used, piece.done), (2, true));
        assert!(Body::new(Framing::Length(0)).feed(b"").unwrap().done);
    }

    #[test]
    fn events_are_counted_however_the_reads_fall() {
        for step in 1..STREAM.len() {
            let mut body = Body::new(Framing::Chunked);
            let (mut used, mut events, mut done) = (0, 0, false);
            for part in STREAM.chunks(step) {
                let piece = body.feed(part).unwrap();
                used += piece.used;
                events += piece.events;
                done |= piece.done;
            }
            assert_eq!((used, events, done), (STREAM.len() - 4, 3, true), "{step}");
        }
    }

    #[test]
    fn a_chunk_that_is_longer_than_its_size_is_malformed() {
        let mut body = Body::new(Framing::Chunked);
        assert_eq!(body.feed(b"2\r\nabcd\r\n"), Err(Malformed));
        assert_eq!(Body::new(Framing::Chunked).feed(b"zz\r\n"), Err(Malformed));
    }
}
