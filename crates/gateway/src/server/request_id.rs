//! The request id: the client's, or a fresh one that looks like those of the field.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::header_lookup;

const ALPHANUMERIC: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// A longer id of a client is cut, bytes.
const MAX_SENT: usize = 128;
const RANDOM_PART: usize = 24;
/// 62⁸ is well within 64 bits, so every letter is as likely as any other.
const LETTERS_PER_DRAW: usize = 8;

/// Where request ids come from.
#[derive(Debug)]
pub(super) struct RequestIds {
    /// Searched in order.
    headers: Vec<HeaderName>,
}

impl RequestIds {
    pub(super) fn new(configured: Option<&[String]>) -> Self {
        let usual = [
            "x-request-id",
            "x-correlation-id",
            "x-trace-id",
            "request-id",
        ];
        let headers = match configured {
            Some(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
            None => usual.map(HeaderName::from_static).to_vec(),
        };
        Self { headers }
    }

    /// The id of a request to `path`.
    pub(super) fn of(&self, headers: &HeaderMap, path: &str) -> HeaderValue {
        let mut sent = self
            .headers
            .iter()
            .filter_map(|name| header_lookup::first(headers, name));
        sent.find(|value| value.to_str().is_ok_and(|text| !text.is_empty()))
            .and_then(bounded)
            .unwrap_or_else(|| fresh(path))
    }
}

/// A copy of a client's id: the id outlives the connection's read buffer, which must be freed.
fn bounded(sent: &HeaderValue) -> Option<HeaderValue> {
    let bytes = sent.as_bytes();
    HeaderValue::from_bytes(bytes.get(..MAX_SENT).unwrap_or(bytes)).ok()
}

fn fresh(path: &str) -> HeaderValue {
    let mut letters = [0; RANDOM_PART];
    for some in letters.chunks_exact_mut(LETTERS_PER_DRAW) {
        // A fraction of one; each digit to the base of 62 leaves the fraction of the next.
        let mut fraction = fastrand::u64(..);
        for letter in some {
            let product = u128::from(fraction) * ALPHANUMERIC.len() as u128;
            *letter = ALPHANUMERIC[(product >> 64) as usize];
            fraction = product as u64;
        }
    }
    let id = [prefix(path).as_bytes(), &letters].concat();
    HeaderValue::from_maybe_shared(bytes::Bytes::from(id))
        .unwrap_or(HeaderValue::from_static("req-"))
}

fn prefix(path: &str) -> &'static str {
    match path {
        "/v1/chat/completions" => "chatcmpl-",
        "/v1/completions" => "cmpl-",
        "/generate" => "gnt-",
        _ => prefix_of_other(path),
    }
}

fn prefix_of_other(path: &str) -> &'static str {
    let known = [
        ("/chat/completions", "chatcmpl-"),
        ("/completions", "cmpl-"),
        ("/generate", "gnt-"),
        ("/responses", "resp-"),
        ("/messages", "msg_"),
    ];
    known
        .iter()
        .find(|(part, _)| path.contains(part))
        .map_or("req-", |&(_, prefix)| prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(headers: &[(&'static str, &str)], path: &str) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        RequestIds::new(None)
            .of(&map, path)
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn the_clients_id_is_taken_in_order_of_preference() {
        assert_eq!(
            id(
                &[("x-trace-id", "t"), ("x-correlation-id", "c")],
                "/generate"
            ),
            "c"
        );
        assert_eq!(
            id(
                &[("x-correlation-id", "c"), ("x-request-id", "r")],
                "/generate"
            ),
            "r"
        );
        assert!(id(&[("x-request-id", "")], "/generate").starts_with("gnt-"));
    }

    #[test]
    fn long_id_of_a_client_is_cut_and_copied() {
        let buffer = bytes::Bytes::from("x".repeat(4096));
        let sent = HeaderValue::from_maybe_shared(buffer.slice(..200)).unwrap();
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-request-id"), sent)]);
        let id = RequestIds::new(None).of(&headers, "/");
        assert_eq!(id.len(), MAX_SENT);
        drop(headers);
        assert!(buffer.is_unique(), "the id holds no part of the buffer");
    }

    #[test]
    fn a_fresh_id_has_the_prefix_of_its_path_and_is_fresh() {
        for (path, prefix) in [
            ("/v1/chat/completions", "chatcmpl-"),
            ("/v1/completions", "cmpl-"),
            ("/v1/responses", "resp-"),
            ("/v1/messages", "msg_"),
            ("/v1/embeddings", "req-"),
        ] {
            let fresh = id(&[], path);
            assert!(
                fresh.starts_with(prefix) && fresh.len() == prefix.len() + 24,
                "{fresh}"
            );
            assert_ne!(fresh, id(&[], path));
        }
    }

    #[test]
    fn every_letter_of_an_id_varies() {
        let ids: Vec<_> = (0..200)
            .map(|_| id(&[], "/generate").into_bytes())
            .collect();
        for at in "gnt-".len().."gnt-".len() + RANDOM_PART {
            let letters: std::collections::HashSet<_> = ids.iter().map(|id| id[at]).collect();
            assert!(
                letters.len() > 40,
                "letter {at} takes {} values",
                letters.len()
            );
        }
    }

    #[test]
    fn configured_headers_replace_the_usual_ones() {
        let ids = RequestIds::new(Some(&["x-mine".to_owned()]));
        let headers = HeaderMap::from_iter([
            (
                HeaderName::from_static("x-request-id"),
                HeaderValue::from_static("a"),
            ),
            (
                HeaderName::from_static("x-mine"),
                HeaderValue::from_static("b"),
            ),
        ]);
        assert_eq!(ids.of(&headers, "/"), "b");
    }
}
