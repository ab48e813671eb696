//! What distinguishes a client, by its headers.

use http::header::{self, HeaderMap, HeaderName};
use routing::ClientKey;

use crate::config::LiveSection;
use crate::header_lookup;

static AUTHORIZATION: HeaderName = header::AUTHORIZATION;
static COOKIE: HeaderName = header::COOKIE;
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The headers of a client that may send no routing key.
#[derive(Debug)]
pub(super) struct ClientHeaders<'a> {
    headers: &'a HeaderMap,
    /// All clients send the gateway's key: their `authorization` distinguishes none.
    shared_credentials: bool,
}

impl<'a> ClientHeaders<'a> {
    pub(super) fn new(headers: &'a HeaderMap, live: &LiveSection) -> Self {
        Self {
            headers,
            shared_credentials: live.clients_need_key,
        }
    }
}

impl ClientKey for ClientHeaders<'_> {
    /// The first that is there of `authorization`, `x-forwarded-for` and `cookie`.
    fn bytes(&self) -> Option<&[u8]> {
        let own = Some(&AUTHORIZATION).filter(|_| !self.shared_credentials);
        let names = own.into_iter().chain([&FORWARDED_FOR, &COOKIE]);
        let mut values = names.filter_map(|name| header_lookup::first(self.headers, name));
        let value = values.find(|value| !value.is_empty())?;
        Some(value.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_first_header_with_a_value_identifies_the_client() {
        let mut headers = HeaderMap::new();
        let mark = |headers: &HeaderMap, shared_credentials| {
            let client_key = ClientHeaders {
                headers,
                shared_credentials,
            };
            client_key
                .bytes()
                .map(|mark| String::from_utf8_lossy(mark).into_owned())
        };
        assert_eq!(mark(&headers, false), None);
        headers.insert(&COOKIE, HeaderValue::from_static("session=1"));
        assert_eq!(mark(&headers, false).as_deref(), Some("session=1"));
        headers.insert(&FORWARDED_FOR, HeaderValue::from_static("10.0.0.1"));
        assert_eq!(mark(&headers, false).as_deref(), Some("10.0.0.1"));
        headers.insert(&AUTHORIZATION, HeaderValue::from_static(""));
        assert_eq!(mark(&headers, false).as_deref(), Some("10.0.0.1"));
        headers.insert(&AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert_eq!(mark(&headers, false).as_deref(), Some("Bearer a"));
        assert_eq!(mark(&headers, true).as_deref(), Some("10.0.0.1"));
    }
}
