//! The headers in which clients send keys.

use http::header::{self, HeaderName};

/// Where Anthropic's SDKs put the key.
pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Whether clients send keys in this header. Where the gateway has a key of its own, such a
/// header is meant for the gateway and goes to no worker.
pub(crate) fn carries_a_key(name: &HeaderName) -> bool {
    *name == header::AUTHORIZATION || *name == X_API_KEY || name.as_str() == "api-key"
}
