//! The gateway's mark on every request that it sends (`Via`, RFC 9110 §7.6.3), by which a request
//! that comes back is known.

use http::header::{self, HeaderMap, HeaderValue};

use crate::header_lookup;

/// Gateways of this kind that a request may pass.
const MAX_GATEWAYS: usize = 4;
/// How the name of a gateway begins.
const PREFIX: &str = "smg-";

/// The name of one gateway process.
#[derive(Clone, Debug)]
pub(crate) struct Via {
    line: HeaderValue,
}

/// Why a request is not carried further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loop {
    /// It has passed this gateway before.
    Own,
    /// It has passed too many gateways.
    TooLong,
}

impl Via {
    /// A name at random.
    pub(crate) fn new() -> Self {
        let line = format!("1.1 {PREFIX}{:016x}", fastrand::u64(..));
        Self {
            line: HeaderValue::try_from(line).unwrap_or(HeaderValue::from_static("1.1 smg-0")),
        }
    }

    /// The line that goes with every request.
    pub(crate) fn line(&self) -> &HeaderValue {
        &self.line
    }

    /// Whether a request with these headers goes in circles.
    pub(crate) fn find_loop(&self, headers: &HeaderMap) -> Option<Loop> {
        header_lookup::first(headers, &header::VIA)?;
        let lines = headers.get_all(header::VIA).into_iter();
        let marks = lines
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .filter(|mark| mark.split(' ').any(|word| word.starts_with(PREFIX)));
        let mut passed = 0;
        for mark in marks {
            if mark.as_bytes() == self.line.as_bytes() {
                return Some(Loop::Own);
            }
            passed += 1;
        }
        (passed > MAX_GATEWAYS).then_some(Loop::TooLong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let lines = lines
            .iter()
            .map(|line| (header::VIA, line.parse().unwrap()));
        lines.collect()
    }

    #[test]
    fn request_that_passed_this_gateway_is_found_among_other_proxies() {
        let via = Via::new();
        let own = via.line().to_str().unwrap();
        for lines in [
            &[own][..],
            &["1.1 nginx", own],
            &[&format!("1.1 a, {own}, 1.0 b")],
        ] {
            assert_eq!(via.find_loop(&headers(lines)), Some(Loop::Own), "{lines:?}");
        }
        for lines in [&[][..], &["1.1 nginx"], &["1.1 smg-1, 1.1 smg-2"]] {
            assert_eq!(via.find_loop(&headers(lines)), None, "{lines:?}");
        }
    }

    #[test]
    fn chain_of_gateways_is_bounded() {
        let chain = |count: usize| {
            let marks: Vec<_> = (0..count).map(|at| format!("1.1 smg-{at}")).collect();
            Via::new().find_loop(&headers(&[&marks.join(", ")]))
        };
        assert_eq!(chain(MAX_GATEWAYS), None);
        assert_eq!(chain(MAX_GATEWAYS + 1), Some(Loop::TooLong));
    }

    #[test]
    fn every_gateway_has_a_name_of_its_own() {
        assert_ne!(Via::new().line(), Via::new().line());
    }
}
