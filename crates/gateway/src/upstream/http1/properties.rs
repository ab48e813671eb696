//! What holds for every response of a worker.

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode};

use super::framing::Framing;
use super::head::{MAX_HEAD, ResponseHead, Switch, parse};

/// What was read of a response.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reading {
    /// Status, header lines, and whether the connection may be used again.
    head: Option<(StatusCode, HeaderMap, bool)>,
    body: Vec<u8>,
    end: End,
    /// What was left in the buffer.
    rest: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Waits,
    Done,
    Refused,
}

impl Reading {
    /// Reads a response that comes in these pieces.
    fn of<'a>(method: &Method, pieces: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut reading, mut buffer) = (Self::default(), BytesMut::new());
        let mut framing = None;
        for piece in pieces {
            buffer.extend_from_slice(piece);
            if reading.end == End::Refused {
                continue;
            }
            if framing.is_none() {
                match parse(&mut buffer, method, Switch::Refused) {
                    Ok(Some(head)) => framing = Some(reading.take_head(head)),
                    Ok(None) => assert!(buffer.len() < MAX_HEAD),
                    Err(_) => reading.end = End::Refused,
                }
            }
            if let Some(framing) = &mut framing {
                reading.take_body(framing, &mut buffer);
            }
        }
        // Bytes are left over for another response only where this one has ended.
        if reading.end == End::Done {
            reading.rest = buffer.to_vec();
        }
        reading
    }

    fn take_head(&mut self, head: ResponseHead) -> Framing {
        self.head = Some((head.status, head.headers, head.keep_alive));
        head.framing
    }

    fn take_body(&mut self, framing: &mut Framing, buffer: &mut BytesMut) {
        loop {
            let before = buffer.len();
            match framing.decode(buffer) {
                Ok(Some(piece)) => {
                    assert!(!piece.is_empty() && buffer.len() + piece.len() <= before);
                    self.body.extend_from_slice(&piece);
                }
                Ok(None) => break,
                Err(_) => {
                    self.end = End::Refused;
                    return;
                }
            }
        }
        if *framing == Framing::Done {
            self.end = End::Done;
        }
    }
}

/// A response reads the same however the network cut it. The first byte of `data` says which
/// method was asked with and how long the pieces are.
///
/// # Panics
/// If it does not.
pub fn response(data: &[u8]) {
    let Some((&first, wire)) = data.split_first() else {
        return;
    };
    let methods = [Method::GET, Method::HEAD, Method::POST];
    let method = &methods[usize::from(first) % methods.len()];
    let length = usize::from(first) / methods.len() + 1;
    let whole = Reading::of(method, [wire].into_iter());
    assert_eq!(Reading::of(method, wire.chunks(length)), whole);
    if let Some((_, headers, _)) = &whole.head {
        for gone in [
            "connection",
            "transfer-encoding",
            "keep-alive",
            "trailer",
            "upgrade",
        ] {
            assert!(!headers.contains_key(gone), "{gone}: {headers:?}");
        }
    }
}
