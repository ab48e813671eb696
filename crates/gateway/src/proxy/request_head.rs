//! What of the client's head goes to the worker.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version, request};

use super::RequestContext;
use crate::endpoint::{Inference, Reply};
use crate::fleet::Worker;
use crate::wire::{RequestHead, is_hop_by_hop};

/// Which client headers are forwarded: all but hop-by-hop ones and those replaced below.
#[derive(Debug)]
pub(super) struct HeaderRules {
    /// The gateway has a key, so `authorization` is meant for it and not for a worker.
    pub(super) credentials_are_ours: bool,
}

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl HeaderRules {
    /// The head of a request to `worker`, still to be finished.
    pub(super) fn head(
        &self,
        worker: &Worker,
        method: &Method,
        path: &str,
        (headers, context): (&HeaderMap, RequestContext<'_>),
    ) -> RequestHead {
        let mut head = worker.request_head(method, path);
        let config = worker.config.load();
        let drop_credentials = self.credentials_are_ours || config.bearer.is_some();
        let named = named_hop_by_hop(headers);
        for (name, value) in headers {
            let dropped = is_replaced(name)
                || is_hop_by_hop(name)
                || (drop_credentials && *name == header::AUTHORIZATION)
                || named.contains(name);
            if !dropped {
                head.header(name, value);
            }
        }
        head.header(&REQUEST_ID, context.request_id);
        if let Some(bearer) = &config.bearer {
            head.header(&header::AUTHORIZATION, bearer);
        }
        head
    }
}

/// Makes a client's head fit for HTTP/1.1 and for what becomes of the reply.
pub(super) fn prepare(parts: &mut request::Parts, row: &Inference) {
    if row.reply == Reply::Rerank {
        // The reply is read here, so it must come as it is.
        parts.headers.remove(header::ACCEPT_ENCODING);
    }
    let crumbs = parts.headers.get_all(header::COOKIE);
    if parts.version == Version::HTTP_2 && crumbs.iter().nth(1).is_some() {
        // HTTP/2 clients may split cookies; towards HTTP/1.1 they are one (RFC 9113 §8.2.3).
        let cookies: Vec<_> = crumbs.iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            parts.headers.insert(header::COOKIE, joined);
        }
    }
}

/// Headers that the gateway writes itself. `expect` was answered when the body was read.
fn is_replaced(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == header::CONTENT_LENGTH
        || *name == header::EXPECT
        || *name == REQUEST_ID
}

/// Headers that the client's `connection` names as hop-by-hop.
fn named_hop_by_hop(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(header::CONNECTION).into_iter();
    let tokens = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    tokens
        .map(str::trim)
        .filter(|token| {
            !token.eq_ignore_ascii_case("keep-alive") && !token.eq_ignore_ascii_case("close")
        })
        .filter_map(|token| token.parse().ok())
        .collect()
}

/// The path at the worker, with the client's query.
pub(super) fn path<'a>(parts: &'a request::Parts, worker_path: &'a str) -> Cow<'a, str> {
    match parts.uri.query() {
        Some(query) => Cow::Owned(format!("{worker_path}?{query}")),
        None => Cow::Borrowed(worker_path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_names_stays_here() {
        let mut headers = HeaderMap::new();
        headers.append("connection", HeaderValue::from_static("close, X-One"));
        headers.append("connection", HeaderValue::from_static("x-two"));
        assert_eq!(named_hop_by_hop(&headers), ["x-one", "x-two"]);
    }
}
