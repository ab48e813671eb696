//! What a client's request for an upgraded connection says (RFC 6455 §4.2.1).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method, Request, Uri, Version, header, request};
use http_body::Body;
use hyper::upgrade::OnUpgrade;
use url::form_urlencoded;

use super::request::asker;
use crate::admission::Asker;
use crate::auth::Principal;
use crate::error::Error;

/// A request to switch to another protocol.
#[derive(Debug)]
pub(crate) struct UpgradeRequest {
    pub(super) parts: request::Parts,
    pub(super) client: ClientEnd,
}

/// The client's end of the connection.
#[derive(Debug)]
pub(super) struct ClientEnd {
    /// It is switched to this.
    pub(super) protocol: &'static str,
    /// There once the reply has been sent.
    pub(super) upgraded: OnUpgrade,
}

impl UpgradeRequest {
    /// The request as the fair order knows it.
    pub(crate) fn asker(&self, principal: &Principal) -> Asker {
        asker(&self.parts, principal, 0)
    }

    /// A request that asks to switch to `protocol`.
    ///
    /// # Errors
    /// When it does not ask for it, or cannot.
    pub(super) fn new<B: Body>(request: Request<B>, protocol: &'static str) -> Result<Self, Error> {
        if request.version() == Version::HTTP_2 {
            return Err(Error::NotImplemented("a WebSocket over HTTP/2"));
        }
        let complete = request.body().is_end_stream();
        let (mut parts, _) = request.into_parts();
        let asks = parts.method == Method::GET
            && names(&parts.headers, &header::UPGRADE, protocol)
            && names(&parts.headers, &header::CONNECTION, "upgrade");
        let client = parts.extensions.remove::<OnUpgrade>();
        match client {
            Some(upgraded) if asks && complete => {
                let client = ClientEnd { protocol, upgraded };
                Ok(Self { parts, client })
            }
            _ => Err(Error::UpgradeRequired(protocol)),
        }
    }
}

/// Whether a list of tokens has this one, in any case.
fn names(headers: &HeaderMap, list: &HeaderName, wanted: &str) -> bool {
    let lines = headers.get_all(list).into_iter();
    let mut tokens = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
}

/// The model that a request without a body names in its query.
pub(super) fn model(uri: &Uri) -> Option<Cow<'_, str>> {
    let mut pairs = form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.find_map(|(name, value)| (name == "model").then_some(value))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn token_is_found_among_others_in_any_case() {
        for (line, found) in [
            ("websocket", true),
            ("h2c, WebSocket", true),
            ("websockets", false),
            ("", false),
        ] {
            let headers = [(header::UPGRADE, HeaderValue::from_static(line))];
            assert_eq!(
                names(
                    &HeaderMap::from_iter(headers),
                    &header::UPGRADE,
                    "websocket"
                ),
                found
            );
        }
    }

    #[test]
    fn model_is_decoded_from_the_query() {
        let found = |uri: &'static str| {
            let uri = Uri::from_static(uri);
            model(&uri).map(Cow::into_owned)
        };
        assert_eq!(
            found("/v1/realtime?a=1&model=org%2Fbase"),
            Some("org/base".into())
        );
        assert_eq!(found("/v1/realtime?a=1"), None);
        assert_eq!(found("/v1/realtime"), None);
    }
}
