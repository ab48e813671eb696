//! Header values that are text.

use http::header::{HeaderMap, HeaderName};

use crate::header_lookup;

/// What keeps requests of a kind together.
pub(super) static ROUTING_KEY: HeaderName = HeaderName::from_static("x-smg-routing-key");
/// The worker that a client asks for.
pub(super) static TARGET: HeaderName = HeaderName::from_static("x-smg-target-worker");

/// A header's value, when it is text and not empty.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = header_lookup::first(headers, name)?.to_str().ok();
    value.filter(|text| !text.is_empty())
}
