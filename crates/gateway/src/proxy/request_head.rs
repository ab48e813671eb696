//! Which of the client's header lines go to the worker, and what is added to them.

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::Guard;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version, request};

use crate::auth::{Principal, carries_a_key};
use crate::config::ProxySection;
use crate::fleet::{Endpoint, WorkerConfig};
use crate::upstream::{CallHeaders, is_hop_by_hop};
use crate::via::Via;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static AUTHORIZATION: HeaderName = header::AUTHORIZATION;
static VIA: HeaderName = header::VIA;

/// Which client headers are forwarded: all but hop-by-hop ones and those replaced below.
#[derive(Debug)]
pub(crate) struct HeaderRules {
    /// Clients may steer engines by `x-override-*` (SGLang's request header overrides).
    pub(super) forward_overrides: bool,
    /// The gateway's mark.
    via: HeaderValue,
}

/// What of a client's head goes to one worker, and its key.
pub(super) struct ForwardedHead<'r> {
    via: &'r HeaderValue,
    config: Guard<Arc<WorkerConfig>>,
    /// What carries keys is meant for the gateway.
    credentials_are_ours: bool,
    forward_overrides: bool,
    /// Headers that the client's `connection` names as hop-by-hop.
    named: Vec<HeaderName>,
}

impl HeaderRules {
    pub(crate) fn new(options: &ProxySection, via: &Via) -> Self {
        Self {
            forward_overrides: options.forward_overrides,
            via: via.line().clone(),
        }
    }

    /// The head of a call to `endpoint` for a client that sent these headers. A key that opened the
    /// gateway is meant for it, and not for a worker.
    pub(super) fn head(
        &self,
        endpoint: &Endpoint,
        headers: &HeaderMap,
        principal: &Principal,
    ) -> ForwardedHead<'_> {
        let config = endpoint.config.load();
        ForwardedHead {
            via: &self.via,
            credentials_are_ours: !matches!(principal, Principal::Anonymous),
            forward_overrides: self.forward_overrides,
            named: named_hop_by_hop(headers),
            config,
        }
    }
}

impl ForwardedHead<'_> {
    /// Whether a client's header line goes to the worker.
    pub(super) fn forwards(&self, name: &HeaderName) -> bool {
        !(is_replaced(name)
            || is_hop_by_hop(name)
            || self.is_credential(name)
            || (!self.forward_overrides && name.as_str().starts_with("x-override-"))
            || self.named.contains(name))
    }

    /// The same for a worker of a pair, or a rank: what steers an engine there is the gateway's
    /// alone.
    pub(super) fn forwards_unsteered(&self, name: &HeaderName) -> bool {
        let steers = name.as_str().starts_with("x-override-") || name == "x-data-parallel-rank";
        self.forwards(name) && !steers
    }

    /// Whether the worker gets a key of the client's: then a refusal of it is the client's.
    pub(super) fn shows_clients_key(&self, client: &HeaderMap) -> bool {
        let mut names = client.keys();
        names.any(|name| carries_a_key(name) && !self.is_credential(name))
    }

    /// Whether a line is a key for the gateway, or gives way to the worker's key.
    fn is_credential(&self, name: &HeaderName) -> bool {
        if self.credentials_are_ours {
            carries_a_key(name)
        } else {
            self.config.bearer.is_some() && *name == AUTHORIZATION
        }
    }

    /// The client's lines that pass, then the gateway's own: its mark, the request id, and the
    /// worker's key where it has one.
    pub(super) fn call_headers<'a>(
        &'a self,
        client: &'a HeaderMap,
        forwards: &'a (dyn Fn(&HeaderName) -> bool + Sync),
        request_id: &'a HeaderValue,
    ) -> CallHeaders<'a> {
        let key = self.config.bearer.as_ref();
        CallHeaders {
            client,
            forwards,
            added: [
                Some((&VIA, self.via)),
                Some((&REQUEST_ID, request_id)),
                key.map(|key| (&AUTHORIZATION, key)),
            ],
            steering: &[],
        }
    }
}

/// Makes a client's head fit for HTTP/1.1.
pub(super) fn prepare(parts: &mut request::Parts) {
    if parts.method == Method::HEAD {
        // What answers GET need not answer HEAD; hyper leaves the body out.
        parts.method = Method::GET;
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
    fn headers_named_by_connection_are_not_forwarded() {
        let mut headers = HeaderMap::new();
        headers.append("connection", HeaderValue::from_static("close, X-One"));
        headers.append("connection", HeaderValue::from_static("x-two"));
        assert_eq!(named_hop_by_hop(&headers), ["x-one", "x-two"]);
    }
}
