//! A request to a worker, not yet in the form of any protocol.

use std::io::IoSlice;

use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Slices a body may consist of: a splice in the middle of a client's body copies nothing.
const BODY_PARTS: usize = 3;

/// A request to a worker.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'a Method,
    /// Path and query, below the path prefix of the worker's URL.
    pub(crate) path: &'a str,
    pub(crate) headers: CallHeaders<'a>,
    pub(crate) body: CallBody<'a>,
    /// The protocol that the worker is asked to switch to.
    pub(crate) upgrade: Option<&'a str>,
}

/// The client's header lines that pass, then those of the gateway.
#[derive(Clone, Copy)]
pub(crate) struct CallHeaders<'a> {
    pub(crate) client: &'a HeaderMap,
    /// Whether a line of the client's is forwarded.
    pub(crate) forwards: &'a (dyn Fn(&HeaderName) -> bool + Sync),
    pub(crate) added: [Option<(&'a HeaderName, &'a HeaderValue)>; 3],
    /// Lines for this attempt: for an engine in a pair, and the span that it is.
    pub(crate) steering: &'a [Line],
}

/// A header line of the gateway's.
pub(crate) type Line = (&'static HeaderName, HeaderValue);

impl<'a> CallHeaders<'a> {
    /// Every line, in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)> {
        let client = self.client.iter();
        let forwarded = client.filter(move |(name, _)| (self.forwards)(name));
        let steering = self.steering.iter().map(|(name, value)| (*name, value));
        let added = self.added.into_iter().flatten();
        forwarded.chain(added).chain(steering)
    }
}

/// A body of up to three slices, sent one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CallBody<'a> {
    parts: [&'a [u8]; BODY_PARTS],
    len: usize,
}

impl<'a> CallBody<'a> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All of it in one piece, copied.
    pub(super) fn to_bytes(self) -> Bytes {
        self.parts.concat().into()
    }

    /// What is left to write after `sent` bytes of `head` and of this body, in `slices`.
    pub(super) fn unsent<'s>(
        &self,
        head: &'a [u8],
        mut sent: usize,
        slices: &'s mut [IoSlice<'a>; BODY_PARTS + 1],
    ) -> &'s [IoSlice<'a>] {
        let [first, second, third] = self.parts;
        let mut count = 0;
        for part in [head, first, second, third] {
            let left = part.get(sent..).unwrap_or_default();
            sent = sent.saturating_sub(part.len());
            if let (false, Some(slice)) = (left.is_empty(), slices.get_mut(count)) {
                *slice = IoSlice::new(left);
                count += 1;
            }
        }
        slices.get(..count).unwrap_or_default()
    }
}

impl<'a> From<&'a [u8]> for CallBody<'a> {
    fn from(whole: &'a [u8]) -> Self {
        Self::from([whole, &[], &[]])
    }
}

impl<'a> From<[&'a [u8]; BODY_PARTS]> for CallBody<'a> {
    fn from(parts: [&'a [u8]; BODY_PARTS]) -> Self {
        let len = parts.iter().map(|part| part.len()).sum();
        Self { parts, len }
    }
}

/// Headers that concern one connection, not the message (RFC 9110 §7.6.1).
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == header::TE
        || *name == header::TRAILER
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_left_to_write_whatever_was_sent() {
        let body = CallBody::from([&b"ab"[..], b"", b"cde"]);
        assert_eq!(body.len(), 5);
        for sent in 0..=7 {
            let mut slices = [IoSlice::new(&[]); 4];
            let left = body.unsent(b"H:", sent, &mut slices);
            let left: Vec<u8> = left.iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!(left, b"H:abcde"[sent..]);
        }
    }
}
