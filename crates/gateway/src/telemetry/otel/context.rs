//! The `traceparent` header (W3C Trace Context, level 1).

use http::HeaderValue;

/// The length of the fields that every version has.
const LEN: usize = 55;
const SAMPLED: u8 = 1;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A span, as another process names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpanRef {
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
    /// Whether the trace is recorded.
    pub(super) sampled: bool,
}

impl SpanRef {
    /// Reads a header. `None` where it breaks a rule: then the trace is not to be continued.
    pub(super) fn parse(header: &[u8]) -> Option<Self> {
        let (fields, rest) = header.split_at_checked(LEN)?;
        let fields: &[u8; LEN] = fields.try_into().ok()?;
        let dashes = [2, 35, 52].iter().all(|&at| fields[at] == b'-');
        let version = hex(&fields[..2])?;
        // Later versions may have more fields behind these.
        let ends = rest.is_empty() || (version > 0 && rest.starts_with(b"-"));
        if !dashes || !ends || version == 0xff {
            return None;
        }
        let (trace_id, span_id) = (hex(&fields[3..35])?, hex(&fields[36..52])? as u64);
        let flags = hex(&fields[53..])? as u8;
        (trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            sampled: flags & SAMPLED != 0,
        })
    }

    /// The header that names this span as the parent of what is done for it.
    pub(super) fn header(self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..35], &self.trace_id.to_be_bytes());
        write_hex(&mut text[36..52], &self.span_id.to_be_bytes());
        text[LEN - 1] += u8::from(self.sampled);
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
    }
}

/// A number in lower-case digits.
fn hex(digits: &[u8]) -> Option<u128> {
    let mut number = 0;
    for &digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(value);
    }
    Some(number)
}

/// Writes two digits for each byte.
fn write_hex(digits: &mut [u8], bytes: &[u8]) {
    let (pairs, _) = digits.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ];
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use opentelemetry::propagation::TextMapPropagator;
    use opentelemetry::trace::TraceContextExt;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(text: &str) -> Option<SpanRef> {
        SpanRef::parse(text.as_bytes())
    }

    /// What the SDK makes of the same header.
    fn by_sdk(text: &str) -> Option<SpanRef> {
        let headers = HashMap::from([("traceparent".to_owned(), text.to_owned())]);
        let context = TraceContextPropagator::new().extract(&headers);
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| SpanRef {
            trace_id: u128::from_be_bytes(span.trace_id().to_bytes()),
            span_id: u64::from_be_bytes(span.span_id().to_bytes()),
            sampled: span.is_sampled(),
        })
    }

    #[test]
    fn parent_is_read_and_written_alike() {
        let parent = parse(GOOD).unwrap();
        assert_eq!(
            parent,
            SpanRef {
                trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
                span_id: 0xb7ad_6b71_6920_3331,
                sampled: true
            }
        );
        assert_eq!(parent.header(), GOOD);
        let unsampled = GOOD.replace("-01", "-00");
        assert!(!parse(&unsampled).unwrap().sampled);
        assert_eq!(parse(&unsampled).unwrap().header(), unsampled.as_str());
    }

    #[test]
    fn flags_of_others_and_fields_of_later_versions_are_left_out() {
        let random_too = GOOD.replace("-01", "-03");
        assert_eq!(parse(&random_too).unwrap().header(), GOOD);
        for later in ["cc-", "01-"] {
            let text = GOOD.replacen("00-", later, 1);
            for text in [text.clone(), format!("{text}-what-comes")] {
                assert_eq!(parse(&text), parse(GOOD), "{text}");
            }
        }
    }

    #[test]
    fn header_that_breaks_a_rule_is_none() {
        let later = GOOD.replacen("00-", "01-", 1);
        for bad in [
            String::new(),
            "t".to_owned(),
            GOOD[1..].to_owned(),
            format!(" {GOOD}"),
            format!("{GOOD}-"),
            format!("{GOOD}0"),
            format!("{later}."),
            GOOD.to_uppercase(),
            GOOD.replacen("00-", "ff-", 1),
            GOOD.replacen("00-", "0x-", 1),
            GOOD.replace('-', "_"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace("-01", "-+1"),
            GOOD.replace("b7ad", "b7ag"),
            GOOD.replace("b7ad", "b7\u{e9}"),
        ] {
            assert_eq!(parse(&bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_span_survives_its_header(trace_id in 1_u128.., span_id in 1_u64.., sampled: bool) {
            let span = SpanRef { trace_id, span_id, sampled };
            let header = span.header();
            prop_assert_eq!(SpanRef::parse(header.as_bytes()), Some(span));
            prop_assert_eq!(by_sdk(header.to_str().unwrap()), Some(span));
        }

        /// The SDK takes more than the rules allow, never less.
        #[test]
        fn sdk_reads_what_is_read_here(at in 0..LEN, letter in "[0-9a-gA-F -]", cut in 0..=LEN) {
            let mut text = GOOD.to_owned();
            text.replace_range(at..=at, &letter);
            let by_rules = parse(&text);
            if by_rules.is_some() {
                prop_assert_eq!(by_sdk(&text), by_rules);
            }
            prop_assert_eq!(parse(&text[..cut]), by_rules.filter(|_| cut == LEN));
        }

        #[test]
        fn no_header_makes_it_fail(header: Vec<u8>) {
            SpanRef::parse(&header);
        }
    }
}
