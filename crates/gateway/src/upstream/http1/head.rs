//! Request heads written, response heads read.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::framing::{Chunk, Framing};
use crate::config::WorkerUrl;
use crate::upstream::call::{Call, is_hop_by_hop};

/// More header lines than this are refused, as hyper does.
const MAX_HEADERS: usize = 100;
/// A response head larger than this is refused, bytes.
pub(super) const MAX_HEAD: usize = 256 * 1024;

/// A request head, ready for the socket.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) bytes: Vec<u8>,
    pub(super) method: Method,
    /// Whether it asks for another protocol.
    pub(super) switch: Switch,
}

/// Whether 101 may be the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switch {
    Accepted,
    Refused,
}

impl RequestHead {
    /// The head of a call to the worker at `url`.
    pub(super) fn new(call: &Call<'_>, url: &WorkerUrl) -> Self {
        let mut bytes = Vec::with_capacity(512);
        for part in [
            call.method.as_str(),
            " ",
            url.prefix(),
            call.path,
            " HTTP/1.1\r\nhost: ",
            url.authority().as_str(),
            "\r\n",
        ] {
            bytes.extend_from_slice(part.as_bytes());
        }
        call.headers.iter().for_each(|(name, value)| {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        });
        let length = call.body.len();
        if length > 0 || call.method == Method::POST || call.method == Method::PUT {
            bytes.extend_from_slice(b"content-length: ");
            bytes.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        if let Some(protocol) = call.upgrade {
            for part in ["connection: Upgrade\r\nupgrade: ", protocol, "\r\n"] {
                bytes.extend_from_slice(part.as_bytes());
            }
        }
        bytes.extend_from_slice(b"\r\n");
        Self {
            bytes,
            method: call.method.clone(),
            switch: call.upgrade.map_or(Switch::Refused, |_| Switch::Accepted),
        }
    }
}

/// A response head without its hop-by-hop lines, and what follows it.
#[derive(Debug)]
pub(in crate::upstream) struct ResponseHead {
    pub(in crate::upstream) status: StatusCode,
    pub(in crate::upstream) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether the connection may carry another request afterwards.
    pub(super) keep_alive: bool,
}

/// Reads a head from the front of `buffer`; `None` while it is incomplete.
pub(super) fn parse(
    buffer: &mut BytesMut,
    method: &Method,
    switch: Switch,
) -> Result<Option<ResponseHead>, &'static str> {
    loop {
        let Some((status, head)) = parse_one(buffer, method)? else {
            return Ok(None);
        };
        match status.as_u16() {
            // What follows is the other protocol's.
            101 if switch == Switch::Accepted => return Ok(Some(head)),
            101 => return Err("switched protocols without being asked"),
            100..=199 => {} // interim: the real head follows
            _ => return Ok(Some(head)),
        }
    }
}

/// A header line's name, and where its value stands in the head.
type Line = (HeaderName, std::ops::Range<usize>);

thread_local! {
    /// Room for the lines of the head at hand, which is used again.
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

fn parse_one(
    buffer: &mut BytesMut,
    method: &Method,
) -> Result<Option<(StatusCode, ResponseHead)>, &'static str> {
    LINES.with_borrow_mut(|room| {
        let parsed = parse_into(room, buffer, method);
        room.clear();
        parsed
    })
}

fn parse_into(
    parts: &mut Vec<Line>,
    buffer: &mut BytesMut,
    method: &Method,
) -> Result<Option<(StatusCode, ResponseHead)>, &'static str> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let used = match parser.parse_response_with_uninit_headers(&mut response, buffer, &mut lines) {
        // The limit is the same however the head was cut into reads.
        Ok(httparse::Status::Complete(used)) if used <= MAX_HEAD => used,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
        Ok(_) => return Err("response head is too large"),
        Err(httparse::Error::TooManyHeaders) => return Err("response has too many headers"),
        Err(_) => return Err("response is not HTTP/1.1"),
    };
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or("response status is out of range")?;
    let modern = response.version == Some(1);
    let start = buffer.as_ptr() as usize;
    for line in response.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let at = line.value.as_ptr() as usize - start;
        parts.push((
            name.map_err(|_| "bad response header name")?,
            at..at + line.value.len(),
        ));
    }
    let head = buffer.split_to(used).freeze();
    let lines = Lines {
        head: &head,
        parts,
        modern,
    };
    Ok(Some((status, lines.assemble(status, method)?)))
}

/// The header lines of a response.
struct Lines<'a> {
    head: &'a Bytes,
    parts: &'a [Line],
    /// The version is HTTP/1.1, not 1.0.
    modern: bool,
}

impl Lines<'_> {
    fn assemble(&self, status: StatusCode, method: &Method) -> Result<ResponseHead, &'static str> {
        let mut headers = HeaderMap::with_capacity(self.parts.len() + 4);
        let mut transfer = Transfer {
            keep_alive: self.modern,
            ..Transfer::default()
        };
        for (name, at) in self.parts {
            let value = &self.head[at.clone()];
            if transfer.read(name, value)? {
                let value = HeaderValue::from_maybe_shared(self.head.slice(at.clone()));
                headers.append(name, value.map_err(|_| "bad response header value")?);
            }
        }
        for name in &transfer.named {
            headers.remove(name);
        }
        transfer.check_bodiless(status);
        let framing = transfer.framing(status, method);
        if matches!(framing, Framing::Chunked(_) | Framing::UntilClose) {
            headers.remove(header::CONTENT_LENGTH);
        }
        Ok(ResponseHead {
            status,
            headers,
            keep_alive: transfer.may_reuse(&framing),
            framing,
        })
    }
}

/// What the hop-by-hop lines say.
#[derive(Default)]
struct Transfer {
    keep_alive: bool,
    length: Option<u64>,
    /// Transfer codings were named; whether `chunked` is the last.
    chunked: Option<bool>,
    /// Headers that `connection` names as hop-by-hop.
    named: Vec<HeaderName>,
}

impl Transfer {
    /// Takes note of a line; returns whether the client gets it.
    fn read(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, &'static str> {
        if *name == header::CONTENT_LENGTH {
            let length = content_length(value).ok_or("bad content-length")?;
            if self
                .length
                .replace(length)
                .is_some_and(|earlier| earlier != length)
            {
                return Err("two different content-lengths");
            }
            return Ok(true);
        }
        if *name == header::TRANSFER_ENCODING {
            let last = tokens(value).last();
            self.chunked = Some(last.is_some_and(|last| last.eq_ignore_ascii_case(b"chunked")));
        } else if *name == header::CONNECTION {
            for token in tokens(value) {
                if token.eq_ignore_ascii_case(b"close") {
                    self.keep_alive = false;
                } else if !token.eq_ignore_ascii_case(b"keep-alive") {
                    self.named.extend(HeaderName::from_bytes(token).ok());
                }
            }
        }
        Ok(!is_hop_by_hop(name))
    }

    /// A status without a body that announces one: what follows may be that body.
    fn check_bodiless(&mut self, status: StatusCode) {
        let announced = self.chunked.is_some() || self.length.is_some_and(|length| length > 0);
        let bodiless = status == StatusCode::NO_CONTENT
            || (status == StatusCode::NOT_MODIFIED && self.chunked.is_some());
        if announced && bodiless {
            self.keep_alive = false;
        }
    }

    fn framing(&self, status: StatusCode, method: &Method) -> Framing {
        let bodiless = matches!(status.as_u16(), 204 | 304) || *method == Method::HEAD;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Framing::UntilClose;
        }
        match (self.chunked, self.length) {
            _ if bodiless => Framing::Done,
            (Some(true), _) => Framing::Chunked(Chunk::Size),
            (Some(false), _) | (None, None) => Framing::UntilClose,
            (None, Some(0)) => Framing::Done,
            (None, Some(length)) => Framing::Length(length),
        }
    }

    /// Both framings at once may be an attempt at smuggling: such a connection ends here.
    fn may_reuse(&self, framing: &Framing) -> bool {
        let ambiguous = self.chunked.is_some() && self.length.is_some();
        self.keep_alive && !ambiguous && *framing != Framing::UntilClose
    }
}

fn content_length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let tokens = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    tokens.filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::upstream::call::{CallBody, CallHeaders};

    fn read(text: &str) -> Result<Option<ResponseHead>, &'static str> {
        parse(&mut BytesMut::from(text), &Method::POST, Switch::Refused)
    }

    fn whole(text: &str) -> ResponseHead {
        read(text).unwrap().unwrap()
    }

    #[test]
    fn repeated_headers_survive_and_hop_by_hop_ones_do_not() {
        let head = whole(
            "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: x-secret\r\n\
             Keep-Alive: timeout=5\r\nX-Secret: 1\r\nContent-Length: 3\r\n\r\n",
        );
        let cookies: Vec<_> = head.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
        assert_eq!(head.headers.len(), 3);
        assert_eq!(head.framing, Framing::Length(3));
        assert!(head.keep_alive);
    }

    #[test]
    fn interim_responses_are_skipped() {
        let head =
            whole("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(head.status, 404);
        assert_eq!(head.framing, Framing::Done);
    }

    #[test]
    fn an_incomplete_head_waits_for_more() {
        assert!(read("HTTP/1.1 200 OK\r\nContent-Le").unwrap().is_none());
    }

    #[test]
    fn the_body_ends_where_the_rules_say() {
        let framing = |lines: &str| whole(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).framing;
        assert_eq!(framing(""), Framing::UntilClose);
        assert_eq!(framing("Transfer-Encoding: gzip\r\n"), Framing::UntilClose);
        assert_eq!(
            framing("Transfer-Encoding: gzip, chunked\r\n"),
            Framing::Chunked(Chunk::Size)
        );
        let none = whole("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(none.framing, Framing::Done);
        assert!(!none.keep_alive, "the five bytes may follow");
    }

    #[test]
    fn a_connection_with_two_framings_is_not_reused() {
        let head =
            whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n");
        assert_eq!(head.framing, Framing::Chunked(Chunk::Size));
        assert!(!head.keep_alive);
        assert!(!head.headers.contains_key("content-length"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(read(&"HTTP/1.1 200 OK\r\n".repeat(20_000)).is_err());
    }

    #[test]
    fn an_old_or_closing_worker_is_not_asked_again() {
        assert!(!whole("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n").keep_alive);
        assert!(
            !whole("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").keep_alive
        );
    }

    #[test]
    fn request_head_has_line_host_forwarded_headers_and_length() {
        let url = WorkerUrl::parse("http://w:80/v2").unwrap();
        let client = HeaderMap::from_iter([
            (header::ACCEPT, HeaderValue::from_static("*/*")),
            (header::HOST, HeaderValue::from_static("gateway")),
        ]);
        let call = Call {
            method: &Method::POST,
            path: "/generate?a=1",
            headers: CallHeaders {
                client: &client,
                forwards: &|name| *name != header::HOST,
                added: [None; 3],
                steering: &[],
            },
            body: (&b"{}"[..]).into(),
            upgrade: None,
        };
        let text = String::from_utf8(RequestHead::new(&call, &url).bytes).unwrap();
        assert_eq!(
            text,
            "POST /v2/generate?a=1 HTTP/1.1\r\nhost: w:80\r\naccept: */*\r\ncontent-length: 2\r\n\r\n"
        );
    }

    #[test]
    fn head_that_asks_for_another_protocol_has_both_lines_and_takes_101() {
        let url = WorkerUrl::parse("http://w:80").unwrap();
        let call = Call {
            method: &Method::GET,
            path: "/v1/realtime",
            headers: CallHeaders {
                client: &HeaderMap::new(),
                forwards: &|_| true,
                added: [None; 3],
                steering: &[],
            },
            body: CallBody::default(),
            upgrade: Some("websocket"),
        };
        let request = RequestHead::new(&call, &url);
        assert_eq!(
            String::from_utf8(request.bytes).unwrap(),
            "GET /v1/realtime HTTP/1.1\r\nhost: w:80\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
        );
        let mut answer = BytesMut::from(
            "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nfirst",
        );
        let head = parse(&mut answer, &request.method, request.switch);
        assert_eq!(head.unwrap().unwrap().status, 101);
        assert_eq!(&answer[..], b"first");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&mut BytesMut::from(&bytes[..]), &Method::GET, Switch::Accepted);
        }
    }
}
