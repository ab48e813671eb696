//! What a reply says of its tokens, read from its last bytes: of a few replies for the length of
//! tokens, of all of them for the access log.

use std::sync::{Arc, LazyLock};

use memchr::memmem::{self, Finder};
use routing::LearntRatio;

use super::request::ProxyRequest;
use crate::balancer::Balancer;
use crate::endpoint::Vendor;
use crate::telemetry::Usage;

/// The end of a reply in which the counts are, bytes.
const TAIL: usize = 2048;
/// A shorter prompt says little: a chat template adds tokens to it, bytes.
const SHORTEST_PROMPT: u64 = 2048;
/// One request of so many is looked at.
const SAMPLED: u64 = 16;
/// How the names of all counts end. The prompt's tokens are `prompt_tokens` for `OpenAI` and
/// `SGLang`, `input_tokens` for Anthropic and Responses.
static COUNT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"_tokens\":"));

/// Watches a reply for its counts.
#[derive(Debug)]
pub(super) struct UsageWatch {
    tail: Tail,
    /// What a reply in one piece says: nothing of it is kept.
    usage: Option<Usage>,
    vendor: Vendor,
    sample: Option<Sample>,
}

/// A request whose tokens are compared with its text.
#[derive(Debug)]
struct Sample {
    /// Of the prompt's text.
    bytes: u64,
    ratio: Arc<LearntRatio>,
}

/// The last bytes of a reply. Pieces are appended, and only now and then is there a look at what
/// is too old.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl UsageWatch {
    /// For a request that is logged, and for one of many; `None` for the others. No `balancer`
    /// learns from a request that goes on from what a worker keeps: its prompt is longer than what
    /// is in its body.
    pub(super) fn of(request: &ProxyRequest<'_>, balancer: Option<&Arc<Balancer>>) -> Option<Self> {
        let sample = balancer.and_then(|balancer| Sample::of(request, balancer));
        let wanted = sample.is_some() || request.context.log.is_begun();
        wanted.then(|| Self {
            tail: Tail::default(),
            usage: None,
            vendor: request.row.vendor,
            sample,
        })
    }

    /// A piece of the reply has come.
    pub(super) fn pass(&mut self, piece: &[u8]) {
        self.tail.append(piece);
    }

    /// The last piece of the reply has come.
    pub(super) fn pass_last(&mut self, piece: &[u8]) {
        if self.tail.0.is_empty() {
            self.usage = Some(usage(end(piece), self.vendor));
        } else {
            self.tail.append(piece);
        }
    }

    /// The reply is complete. Learns from its counts.
    pub(super) fn finish(&self) -> Usage {
        let kept = || usage(end(&self.tail.0), self.vendor);
        let usage = self.usage.unwrap_or_else(kept);
        if let (Some(sample), Some(tokens)) = (&self.sample, usage.prompt) {
            sample.ratio.observe(sample.bytes, tokens);
        }
        usage
    }
}

impl Sample {
    fn of(request: &ProxyRequest<'_>, balancer: &Balancer) -> Option<Self> {
        let routing = request.routing;
        if !routing.seed.is_multiple_of(SAMPLED) || !request.row.streams {
            return None;
        }
        let bytes = routing.prompt.only_text()?;
        if bytes < SHORTEST_PROMPT {
            return None;
        }
        Some(Self {
            bytes,
            ratio: balancer.learnt_ratio(routing)?,
        })
    }
}

impl Tail {
    fn append(&mut self, piece: &[u8]) {
        let kept = &mut self.0;
        if piece.len() >= TAIL {
            kept.clear();
        } else if kept.len() + piece.len() > 2 * TAIL {
            kept.drain(..kept.len() - TAIL);
        }
        kept.extend_from_slice(end(piece));
    }
}

/// The last bytes.
fn end(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.len().saturating_sub(TAIL)..]
}

/// The tokens of a reply to one prompt.
fn usage(tail: &[u8], vendor: Vendor) -> Usage {
    // A list has one answer per prompt, or per sample; so have SGLang's own events with an index.
    let several = tail.trim_ascii_end().ends_with(b"}]")
        || (vendor == Vendor::Sglang && memmem::find(tail, b"\"index\":").is_some());
    if several {
        return Usage::default();
    }
    let mut usage = Usage::default();
    for at in COUNT.find_iter(tail) {
        let (before, after) = (&tail[..at], &tail[at + COUNT.needle().len()..]);
        // A name begins with its quotation mark.
        let name = &before[memchr::memrchr(b'"', before).unwrap_or(at)..];
        let count = match name {
            b"\"prompt" | b"\"input" => &mut usage.prompt,
            b"\"cached" | b"\"cache_read_input" => &mut usage.cached,
            b"\"completion" | b"\"output" => &mut usage.completion,
            _ => continue,
        };
        *count = number(after);
    }
    usage
}

/// The number at the start of this text.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.trim_ascii_start();
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
            assert_eq!(usage(tail.as_bytes(), vendor).prompt, tokens, "{tail}");
        }
    }

    #[test]
    fn cached_and_written_tokens_are_found_in_every_form_of_a_reply() {
        let counts = |prompt, cached, completion| Usage {
            prompt,
            cached,
            completion,
        };
        for (tail, wanted) in [
            (
                r#""usage":{"prompt_tokens":12,"completion_tokens":8,"total_tokens":20,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":2}}}"#,
                counts(Some(12), Some(4), Some(8)),
            ),
            (
                r#""meta_info":{"prompt_tokens": 7,"completion_tokens":3,"cached_tokens":0}}"#,
                counts(Some(7), Some(0), Some(3)),
            ),
            (
                r#""usage":{"input_tokens":9,"cache_read_input_tokens":5,"output_tokens":2}}"#,
                counts(Some(9), Some(5), Some(2)),
            ),
            (
                r#""usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":1},"output_tokens":6,"output_tokens_details":{"reasoning_tokens":0}}}"#,
                counts(Some(9), Some(1), Some(6)),
            ),
            (r#""text":"a \"prompt_tokens\":5"}"#, Usage::default()),
        ] {
            assert_eq!(usage(tail.as_bytes(), Vendor::OpenAi), wanted, "{tail}");
        }
    }

    #[test]
    fn only_the_end_of_a_reply_is_kept() {
        let mut tail = Tail::default();
        let mut whole = Vec::new();
        for (at, size) in [10, TAIL, 3, TAIL * 3, 5, TAIL - 1, 700, 700, 700]
            .into_iter()
            .cycle()
            .take(100)
            .enumerate()
        {
            let piece: Vec<u8> = (0..size)
                .map(|byte| ((byte * 31 + at) % 251) as u8)
                .collect();
            tail.append(&piece);
            whole.extend_from_slice(&piece);
            assert!(tail.0.len() <= 2 * TAIL);
            assert_eq!(end(&tail.0), end(&whole));
        }
    }

    #[test]
    fn ratio_is_learnt_from_a_count_that_comes_in_pieces() {
        let ratio = Arc::<LearntRatio>::default();
        let mut watch = UsageWatch {
            tail: Tail::default(),
            usage: None,
            vendor: Vendor::OpenAi,
            sample: Some(Sample {
                bytes: 4000,
                ratio: Arc::clone(&ratio),
            }),
        };
        for _ in 0..20 {
            for piece in br#"{"usage":{"prompt_tokens":2000}}"#.chunks(7) {
                watch.pass(piece);
            }
            assert_eq!(watch.finish().prompt, Some(2000));
        }
        assert_eq!(ratio.get().to_bytes(100), 200);
    }

    #[test]
    fn reply_in_one_piece_is_counted_without_a_copy() {
        let reply = br#"{"usage":{"prompt_tokens":7,"completion_tokens":2}}"#;
        let mut watch = UsageWatch {
            tail: Tail::default(),
            usage: None,
            vendor: Vendor::OpenAi,
            sample: None,
        };
        watch.pass_last(reply);
        assert!(watch.tail.0.is_empty());
        assert_eq!(watch.finish().completion, Some(2));
        let mut pieces = UsageWatch {
            usage: None,
            ..watch
        };
        pieces.pass(&reply[..20]);
        pieces.pass_last(&reply[20..]);
        assert_eq!(pieces.finish().prompt, Some(7));
    }
}
