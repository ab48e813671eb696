//! Where clients send keys.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::endpoint::Vendor;
use crate::header_lookup;

/// Where Anthropic's SDKs put the key.
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Whether clients send keys in this header. Where the gateway has a key of its own, such a
/// header is meant for the gateway and goes to no worker.
pub(crate) fn carries_a_key(name: &HeaderName) -> bool {
    *name == header::AUTHORIZATION || *name == X_API_KEY || name.as_str() == "api-key"
}

/// The token of `Authorization: Bearer <token>` (RFC 6750).
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    header_lookup::first(headers, &header::AUTHORIZATION).and_then(bearer_token)
}

/// The key of `x-api-key`, where that is read.
pub(super) fn own_header(vendor: Vendor, headers: &HeaderMap) -> Option<&[u8]> {
    let shown = header_lookup::first(headers, &X_API_KEY);
    let shown = shown.filter(|_| vendor == Vendor::Anthropic);
    shown.map(HeaderValue::as_bytes)
}

/// The token after `Bearer`, whose case does not matter (RFC 9110 §11.1).
fn bearer_token(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
    let token = scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)?;
    Some(token.trim_ascii())
}
