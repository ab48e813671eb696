//! Whether hyper holds bytes of a request that has not begun.

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering::Relaxed};

use memchr::memchr_iter;

/// Compares what was read from a connection of HTTP/1.1 with what its requests have. Whatever is
/// not simple counts as unknown, for good: a request that came before the reply to the one before
/// it, a body of chunks, empty lines before a head, HTTP/2.
#[derive(Debug)]
pub(super) struct ReadAhead {
    at: AtomicU8,
    /// Bytes of the body that have not been read; below 0 if more was.
    owed: AtomicI64,
}

/// A head comes next.
const HEAD: u8 = 0;
/// A part of a head has come: it ends within a line, behind one, or behind one and a CR.
const IN_LINE: u8 = 1;
const AT_LINE: u8 = 2;
const AT_RETURN: u8 = 3;
/// A head has come, and its request has not begun.
const BEGIN: u8 = 4;
/// A request is in progress.
const REQUEST: u8 = 5;
const UNKNOWN: u8 = 6;

impl Default for ReadAhead {
    fn default() -> Self {
        Self {
            at: AtomicU8::new(UNKNOWN),
            owed: AtomicI64::new(0),
        }
    }
}

impl ReadAhead {
    /// From now on it is known; nothing has been read.
    pub(super) fn track(&self) {
        self.at.store(HEAD, Relaxed);
    }

    /// hyper has got these bytes.
    pub(super) fn read(&self, bytes: &[u8]) {
        let at = self.at.load(Relaxed);
        if at == UNKNOWN || bytes.is_empty() {
            return;
        }
        let next = match at {
            REQUEST if self.owed.load(Relaxed) > 0 => {
                self.take(bytes.len());
                REQUEST
            }
            REQUEST | BEGIN => UNKNOWN,
            HEAD if matches!(bytes, [b'\r' | b'\n', ..]) => UNKNOWN,
            _ => match end_of_head(at, bytes) {
                Ok(head) => {
                    self.owed.store(0, Relaxed);
                    self.take(bytes.len() - head);
                    BEGIN
                }
                Err(next) => next,
            },
        };
        self.at.store(next, Relaxed);
    }

    fn take(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let owed = self.owed.load(Relaxed).saturating_sub(count);
        self.owed.store(owed, Relaxed);
    }

    /// A request begins; its body has so many bytes, if that is known.
    pub(super) fn begin(&self, body: Option<u64>) {
        let at = self.at.load(Relaxed);
        if at == UNKNOWN {
            return;
        }
        let body = body.and_then(|body| i64::try_from(body).ok());
        let owed = body.map(|body| self.owed.load(Relaxed).saturating_add(body));
        match owed.filter(|&owed| owed >= 0 && at == BEGIN) {
            Some(owed) => {
                self.owed.store(owed, Relaxed);
                self.at.store(REQUEST, Relaxed);
            }
            None => self.at.store(UNKNOWN, Relaxed),
        }
    }

    /// The request has ended.
    pub(super) fn end(&self) {
        if self.at.load(Relaxed) == REQUEST {
            let whole = self.owed.load(Relaxed) == 0;
            self.at.store(if whole { HEAD } else { UNKNOWN }, Relaxed);
        }
    }

    /// Whether there is certainly none, between two requests.
    pub(super) fn is_empty(&self) -> bool {
        self.at.load(Relaxed) == HEAD
    }
}

/// Where the head ends in the next bytes of it, by the rule of `httparse`: at an empty line,
/// whatever ends its lines. If not here, what they end at.
fn end_of_head(at: u8, bytes: &[u8]) -> Result<usize, u8> {
    match (at, bytes) {
        (AT_LINE | AT_RETURN, [b'\n', ..]) => return Ok(1),
        (AT_LINE, [b'\r', b'\n', ..]) => return Ok(2),
        (AT_LINE, [b'\r']) => return Err(AT_RETURN),
        _ => {}
    }
    for line in memchr_iter(b'\n', bytes) {
        match bytes.get(line + 1..).unwrap_or_default() {
            [b'\n', ..] => return Ok(line + 2),
            [b'\r', b'\n', ..] => return Ok(line + 3),
            [b'\r'] => return Err(AT_RETURN),
            [] => return Err(AT_LINE),
            _ => {}
        }
    }
    Err(IN_LINE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADS: [&str; 3] = [
        "POST / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\nhost: a\n\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\n",
    ];

    fn tracked() -> ReadAhead {
        let ahead = ReadAhead::default();
        ahead.track();
        ahead
    }

    #[test]
    fn nothing_is_left_after_a_request_however_its_bytes_came() {
        let ahead = tracked();
        for head in HEADS {
            let whole = format!("{head}\n\r\n\n.").into_bytes();
            let cuts =
                (0..head.len()).flat_map(|one| (head.len()..=whole.len()).map(move |it| (one, it)));
            for (one, other) in cuts {
                ahead.read(&whole[..one]);
                ahead.read(&whole[one..other]);
                assert!(!ahead.is_empty());
                ahead.begin(Some(5));
                ahead.read(&whole[other..]);
                assert!(!ahead.is_empty());
                ahead.end();
                assert!(ahead.is_empty(), "{head:?}, cut at {one} and {other}");
            }
        }
    }

    #[test]
    fn what_is_not_simple_is_unknown_for_good() {
        let body = Some(5);
        let [head, ..] = HEADS;
        let with_rest = format!("{head}12345{}", &head[..1]);
        let steps = [
            (&head[..9], Some(body), "12345"),
            (&with_rest, Some(body), ""),
            (head, Some(body), "123456"),
            (head, Some(body), "1234"),
            (head, Some(None), "12345"),
            ("\r\nGET / HTTP/1.1\r\n\r\n", Some(Some(0)), ""),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None, "settings"),
        ];
        for (first, begins, rest) in steps {
            let ahead = tracked();
            ahead.read(first.as_bytes());
            if let Some(body) = begins {
                ahead.begin(body);
            }
            ahead.read(rest.as_bytes());
            ahead.end();
            assert!(!ahead.is_empty(), "{first:?} {rest:?}");
            ahead.read(head.as_bytes());
            ahead.begin(Some(0));
            ahead.end();
            assert!(!ahead.is_empty(), "{first:?} {rest:?}, and a request");
        }
        assert!(!ReadAhead::default().is_empty());
    }

    #[test]
    fn request_before_the_end_of_the_reply_is_unknown() {
        let ahead = tracked();
        ahead.read(HEADS[0].as_bytes());
        ahead.begin(Some(0));
        ahead.read(b"GET");
        ahead.end();
        assert!(!ahead.is_empty());
    }

    proptest! {
        /// Requests in one stream, read in pieces; hyper begins one when its head is there.
        #[test]
        fn it_is_empty_only_between_requests(
            requests in prop::collection::vec((0..3_usize, 0..9_usize), 1..5),
            pieces in prop::collection::vec(1..60_usize, 1..40),
        ) {
            let (mut stream, mut heads, mut ends) = (Vec::new(), Vec::new(), vec![0]);
            for (head, body) in &requests {
                stream.extend_from_slice(HEADS[*head].as_bytes());
                heads.push((stream.len(), *body as u64));
                stream.extend(std::iter::repeat_n(b'\n', *body));
                ends.push(stream.len());
            }
            let (ahead, mut at, mut begun) = (tracked(), 0, 0);
            for piece in pieces {
                let next = (at + piece).min(stream.len());
                ahead.read(&stream[at..next]);
                at = next;
                while let Some((head, body)) = heads.get(begun).filter(|(head, _)| *head <= at) {
                    ahead.begin(Some(*body));
                    begun += 1;
                    if head + *body as usize > at {
                        break;
                    }
                    ahead.end();
                }
                if ends.get(begun) == Some(&at) {
                    ahead.end();
                }
                prop_assert!(!ahead.is_empty() || ends.contains(&at), "at {at} of {ends:?}");
            }
        }
    }
}
