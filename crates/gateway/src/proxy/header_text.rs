//! Header values that are text.

use http::HeaderMap;

use crate::header_lookup;

/// A header's value, when it is text and not empty.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = header_lookup::first(headers, name)?.to_str().ok();
    value.filter(|text| !text.is_empty())
}
