//! The page: one document with its style and its script in it, and what a browser may do with it.

use std::iter::once;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName, HeaderValue};
use ring::digest::{SHA256, digest};

/// The parts of the script, in order.
macro_rules! script {
    () => {
        concat!(
            include_str!("page/format.js"),
            include_str!("page/stream.js"),
            include_str!("page/workers.js"),
            include_str!("page/sections.js"),
            include_str!("page/dialogs.js"),
            include_str!("page/main.js")
        )
    };
}

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = script!();

pub(super) const HTML: &str = concat!(
    include_str!("page/head.html"),
    "<style>",
    include_str!("page/style.css"),
    "</style>\n",
    include_str!("page/body.html"),
    "<script>",
    script!(),
    "</script>\n</body>\n</html>\n"
);

const FIXED: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// What goes with the page.
pub(super) fn headers() -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let policy = HeaderValue::try_from(content_security_policy());
    let policy = policy.unwrap_or(HeaderValue::from_static("default-src 'none'"));
    once((header::CONTENT_SECURITY_POLICY, policy)).chain(FIXED)
}

/// This script and this style, requests to where the page comes from, and nothing else (CSP level
/// 3). No text becomes markup or code (Trusted Types).
fn content_security_policy() -> String {
    let hash = |text: &str| {
        let digest = digest(&SHA256, text.as_bytes());
        format!("'sha256-{}'", STANDARD.encode(digest))
    };
    [
        "default-src 'none'".to_owned(),
        format!("script-src {}", hash(SCRIPT)),
        format!("style-src {}", hash(STYLE)),
        "connect-src 'self'".to_owned(),
        "base-uri 'none'".to_owned(),
        "form-action 'none'".to_owned(),
        "frame-ancestors 'none'".to_owned(),
        "require-trusted-types-for 'script'".to_owned(),
        "trusted-types 'none'".to_owned(),
    ]
    .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest page, bytes.
    const MOST: usize = 60_000;

    #[test]
    fn page_is_small_and_complete() {
        assert!(HTML.len() <= MOST, "{} bytes", HTML.len());
        assert!(HTML.starts_with("<!doctype html>") && HTML.trim_end().ends_with("</html>"));
        for (tag, count) in [
            ("<script>", 1),
            ("<style>", 1),
            ("</script>", 1),
            ("</style>", 1),
        ] {
            assert_eq!(HTML.matches(tag).count(), count, "{tag}");
        }
    }

    #[test]
    fn nothing_is_loaded_and_nothing_becomes_markup() {
        for forbidden in [
            "http://",
            "https://",
            "src=",
            "url(",
            "@import",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "setAttribute(\"style\"",
            " onclick",
            " onload",
            " onerror",
            " style=",
            "localStorage",
            "document.cookie",
        ] {
            assert!(!HTML.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn hashes_in_the_policy_are_those_of_what_stands_between_the_tags() {
        let between = |open, close| {
            let (_, rest) = HTML.split_once(open).unwrap();
            rest.split_once(close).unwrap().0
        };
        assert_eq!(between("<script>", "</script>"), SCRIPT);
        assert_eq!(between("<style>", "</style>"), STYLE);
        let policy = content_security_policy();
        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(!policy.contains("unsafe"));
    }
}
