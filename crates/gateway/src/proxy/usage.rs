//! What a reply says of its prompt's length, read from the last bytes of a few replies.

use std::sync::Arc;

use memchr::memmem;
use routing::LearntRatio;

use super::request::ProxyRequest;
use crate::balancer::Balancer;
use crate::endpoint::Vendor;

/// The end of a reply in which the counts are, bytes.
const TAIL: usize = 2048;
/// A shorter prompt says little: a chat template adds tokens to it, bytes.
const SHORTEST_PROMPT: u64 = 2048;
/// One request of so many is looked at.
const SAMPLED: u64 = 16;
/// The prompt's tokens: as `OpenAI` and `SGLang` name them, and as Anthropic and Responses do.
const COUNTS: [&[u8]; 2] = [b"\"prompt_tokens\":", b"\"input_tokens\":"];

/// Watches a reply for its counts.
#[derive(Debug)]
pub(super) struct UsageWatch {
    tail: Vec<u8>,
    /// Of the prompt's text.
    bytes: u64,
    vendor: Vendor,
    ratio: Arc<LearntRatio>,
}

impl UsageWatch {
    /// For one of many requests; `None` for the others.
    pub(super) fn sample(request: &ProxyRequest<'_>, balancer: &Balancer) -> Option<Box<Self>> {
        let routing = request.routing;
        if !routing.seed.is_multiple_of(SAMPLED) || !request.row.streams {
            return None;
        }
        let bytes = routing.prompt.only_text()?;
        if bytes < SHORTEST_PROMPT {
            return None;
        }
        Some(Box::new(Self {
            tail: Vec::new(),
            bytes,
            vendor: request.row.vendor,
            ratio: balancer.learnt_ratio(routing)?,
        }))
    }

    /// A piece of the reply has come.
    pub(super) fn pass(&mut self, piece: &[u8]) {
        if piece.len() >= TAIL {
            self.tail.clear();
            self.tail.extend_from_slice(&piece[piece.len() - TAIL..]);
            return;
        }
        let too_many = (self.tail.len() + piece.len()).saturating_sub(TAIL);
        self.tail.drain(..too_many);
        self.tail.extend_from_slice(piece);
    }

    /// The reply is complete.
    pub(super) fn learn(&self) {
        if let Some(tokens) = prompt_tokens(&self.tail, self.vendor) {
            self.ratio.observe(self.bytes, tokens);
        }
    }
}

/// The tokens of the only prompt of a reply.
fn prompt_tokens(tail: &[u8], vendor: Vendor) -> Option<u64> {
    // A list has one answer per prompt, or per sample; so have SGLang's own events with an index.
    let several = tail.trim_ascii_end().ends_with(b"}]")
        || (vendor == Vendor::Sglang && memmem::find(tail, b"\"index\":").is_some());
    if several {
        return None;
    }
    let ends = COUNTS
        .iter()
        .filter_map(|name| Some(memmem::rfind(tail, name)? + name.len()));
    let digits = tail.get(ends.max()?..)?.trim_ascii_start();
    let length = digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    std::str::from_utf8(&digits[..length]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_is_found_in_every_form_of_a_reply() {
        use Vendor::{OpenAi, Sglang};
        for (tail, vendor, tokens) in [
            (
                r#"...,"usage":{"prompt_tokens":12,"total_tokens":20}}"#,
                OpenAi,
                Some(12),
            ),
            (
                r#"..."meta_info":{"id":"x","prompt_tokens": 7,"e2e_latency":1}}"#,
                Sglang,
                Some(7),
            ),
            (
                r#"..."usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":1}}}"#,
                OpenAi,
                Some(9),
            ),
            (
                "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5}}\n\ndata: [DONE]\n\n",
                OpenAi,
                Some(5),
            ),
            (
                r#"[{"meta_info":{"prompt_tokens":3}},{"meta_info":{"prompt_tokens":4}}]"#,
                Sglang,
                None,
            ),
            (
                r#"data: {"index":1,"meta_info":{"prompt_tokens":4}}"#,
                Sglang,
                None,
            ),
            (r#"{"usage":{"prompt_tokens":null}}"#, OpenAi, None),
            (r#"{"usage":{"prompt_tokens":"#, OpenAi, None),
            ("", OpenAi, None),
        ] {
            assert_eq!(prompt_tokens(tail.as_bytes(), vendor), tokens, "{tail}");
        }
    }

    #[test]
    fn only_the_end_of_a_reply_is_kept() {
        let mut watch = UsageWatch {
            tail: Vec::new(),
            bytes: 4000,
            vendor: Vendor::OpenAi,
            ratio: Arc::default(),
        };
        for size in [10, TAIL, 3, TAIL * 3, 5, TAIL - 1] {
            watch.pass(&vec![b'x'; size]);
            assert!(watch.tail.len() <= TAIL);
        }
        for _ in 0..20 {
            for piece in br#"{"usage":{"prompt_tokens":2000}}"#.chunks(7) {
                watch.pass(piece);
            }
            watch.learn();
        }
        assert_eq!(watch.ratio.get().to_bytes(100), 200);
    }
}
