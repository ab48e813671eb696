//! What a reply says of its tokens, read from its last bytes; nothing of it is parsed.

use std::sync::Arc;

use http::StatusCode;
use memchr::{memchr_iter, memmem};
use routing::prefix::{CacheReport, ReportKind};

use super::events::data_lines;
use super::request::ProxyRequest;
use super::token_charge::{TokenCharge, number};
use crate::balancer::{Balancer, TokenStats};
use crate::endpoint::{Servers, Vendor};
use crate::telemetry::Usage;

/// The end of a reply in which the counts are, bytes.
const TAIL: usize = 1024;
/// A shorter prompt says little: a chat template adds tokens to it, bytes.
const SHORTEST_PROMPT: u64 = 2048;
/// What tokens are like is learnt from one request of so many.
const SAMPLED: u64 = 16;

/// What stands between the name of a count and its digits: before, from and behind a letter that is
/// rare. Looking for that letter costs half of what a search for the word does.
const COUNT: (&[u8], u8, &[u8]) = (b"_to", b'k', b"ens\":");

/// Watches a reply for its counts. By default it does nothing.
#[derive(Debug, Default)]
pub(super) struct UsageWatch {
    /// Whose API the reply follows; `None` where no counts are looked for.
    vendor: Option<Vendor>,
    /// Events may have to stand for tokens.
    counts_events: bool,
    /// Lines of data, those that begin with a piece or within one.
    data_lines: u64,
    /// The last pieces; empty if there is but one.
    tail: Vec<u8>,
    usage: Option<Usage>,
    learning: Option<Learning>,
    charge: Option<Box<TokenCharge>>,
}

/// Where it is learnt what a model's tokens are like.
#[derive(Debug)]
struct Learning {
    /// Bytes of the prompt's text, where its tokens say how long they are.
    bytes: Option<u64>,
    /// By which replies are alike.
    key: Option<u64>,
    stats: Arc<TokenStats>,
}

impl UsageWatch {
    /// For the reply to this request.
    pub(super) fn new(request: &ProxyRequest<'_>, balancer: &Balancer) -> Self {
        if request.row.servers == Servers::Any {
            // No model is asked.
            return Self::default();
        }
        Self {
            vendor: Some(request.row.vendor),
            counts_events: request.streaming,
            learning: Learning::sample(request, balancer),
            ..Self::default()
        }
    }

    /// The same, which learns only from a prompt that is all in the request's body.
    pub(super) fn learning_if(mut self, is_whole: bool) -> Self {
        if let Some(learning) = &mut self.learning {
            learning.bytes = learning.bytes.filter(|_| is_whole);
        }
        self
    }

    /// The same, which says what the request takes of its key's limit.
    pub(super) fn charging(mut self, charge: Option<TokenCharge>) -> Self {
        self.charge = charge.map(Box::new);
        self
    }

    /// A worker's reply of this status is to be watched.
    pub(super) fn begin(&mut self, status: StatusCode) {
        if status.is_success() {
            if let Some(charge) = &mut self.charge {
                charge.begin(self.counts_events);
            }
        } else {
            self.charge = None;
        }
    }

    /// A piece of the reply has come, and more may follow.
    pub(super) fn pass(&mut self, piece: &[u8]) {
        if self.vendor.is_none() {
            return;
        }
        if let Some(charge) = &mut self.charge {
            charge.pass(piece);
        }
        self.count_lines(piece);
        let end = end_of(piece);
        if self.tail.capacity() == 0 {
            self.tail.reserve_exact(2 * TAIL);
        } else if self.tail.len() + end.len() > 2 * TAIL {
            let surplus = self.tail.len() - (TAIL - end.len());
            self.tail.drain(..surplus);
        }
        self.tail.extend_from_slice(end);
    }

    /// The last piece of the reply has come.
    pub(super) fn pass_last(&mut self, piece: &[u8]) {
        match self.vendor {
            Some(vendor) if self.tail.is_empty() => {
                if let Some(charge) = &mut self.charge {
                    charge.pass(piece);
                }
                self.count_lines(piece);
                self.usage = read(end_of(piece), vendor);
            }
            _ => self.pass(piece),
        }
    }

    /// What the counts say of the worker's cache.
    pub(super) fn cache_report(&self, usage: Usage) -> Option<CacheReport> {
        Some(CacheReport {
            kind: match self.vendor? {
                Vendor::Sglang => ReportKind::Native,
                _ => ReportKind::Compatible,
            },
            prompt: usage.prompt,
            cached: usage.cached?,
        })
    }

    fn count_lines(&mut self, piece: &[u8]) {
        if self.counts_events {
            self.data_lines += data_lines(piece);
        }
    }

    /// The reply is complete: its tokens, and the events that carry some, if it `has_events`.
    pub(super) fn finish(&mut self, has_events: bool) -> (Option<Usage>, u64) {
        if let (Some(vendor), None) = (self.vendor, self.usage) {
            self.usage = read(&self.tail, vendor);
        }
        if let Some(charge) = self.charge.take() {
            charge.finish(self.usage);
        }
        // The last event says that there are no more.
        let events = self.data_lines.saturating_sub(1);
        let events = if has_events { events } else { 0 };
        if let Some(learning) = &self.learning {
            learning.finish(self.usage.unwrap_or_default(), events);
        }
        (self.usage, events)
    }
}

impl Learning {
    /// For one of many requests; `None` for the others.
    fn sample(request: &ProxyRequest<'_>, balancer: &Balancer) -> Option<Self> {
        let routing = request.routing;
        if !routing.seed.is_multiple_of(SAMPLED) || !request.row.streams {
            return None;
        }
        let bytes = routing.prompt.only_text();
        Some(Self {
            bytes: bytes.filter(|bytes| *bytes >= SHORTEST_PROMPT),
            key: routing.output_key(),
            stats: balancer.token_stats(routing)?,
        })
    }

    /// The reply is complete.
    fn finish(&self, usage: Usage, events: u64) {
        if let (Some(bytes), Some(tokens)) = (self.bytes, usage.prompt) {
            self.stats.ratio.observe(bytes, tokens);
        }
        let output = usage.completion.unwrap_or(events);
        if output > 0 {
            self.stats.outputs.observe(self.key, output);
        }
    }
}

/// The tokens of the only answer of a reply that ends so; the last count of a name holds.
fn read(tail: &[u8], vendor: Vendor) -> Option<Usage> {
    // A list has one answer per prompt, or per sample; so have SGLang's own events with an
    // index.
    let several = tail.trim_ascii_end().ends_with(b"}]")
        || (vendor == Vendor::Sglang && memmem::find(tail, b"\"index\":").is_some());
    if several {
        return None;
    }
    let (before, letter, behind) = COUNT;
    let mut usage = Usage::default();
    for at in memchr_iter(letter, tail) {
        let (Some(name), Some(rest)) = (
            tail[..at].strip_suffix(before),
            tail[at + 1..].strip_prefix(behind),
        ) else {
            continue;
        };
        // As `OpenAI` and `SGLang` name them, and as Anthropic and Responses do.
        let count = if name.ends_with(b"\"prompt") || name.ends_with(b"\"input") {
            &mut usage.prompt
        } else if name.ends_with(b"\"completion") || name.ends_with(b"\"output") {
            &mut usage.completion
        } else if name.ends_with(b"\"cached") || name.ends_with(b"\"cache_read_input") {
            &mut usage.cached
        } else {
            continue;
        };
        // What follows a count may be a schema that has a field of its name.
        *count = number(rest).or(*count);
    }
    (usage != Usage::default()).then_some(usage)
}

/// The end of a piece, in which counts may be.
fn end_of(piece: &[u8]) -> &[u8] {
    &piece[piece.len().saturating_sub(TAIL)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: u64, output: impl Into<Option<u64>>, cached: impl Into<Option<u64>>) -> Usage {
        Usage {
            prompt: Some(input),
            completion: output.into(),
            cached: cached.into(),
        }
    }

    #[test]
    fn counts_are_found_in_every_form_of_a_reply() {
        use Vendor::{Anthropic, OpenAi, Sglang};
        for (tail, vendor, found) in [
            (
                r#"...,"usage":{"prompt_tokens":12,"total_tokens":20,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}}"#,
                OpenAi,
                Some(usage(12, 8, 4)),
            ),
            (
                r#"..."meta_info":{"id":"x","prompt_tokens": 7,"completion_tokens": 3,"cached_tokens":0,"e2e_latency":1}}"#,
                Sglang,
                Some(usage(7, 3, 0)),
            ),
            (
                r#"..."usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":1},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":1}}}"#,
                OpenAi,
                Some(usage(9, 2, 1)),
            ),
            (
                "event: message_delta\ndata: {\"usage\":{\"input_tokens\":6,\"cache_read_input_tokens\":2,\"output_tokens\":4}}\n\nevent: message_stop\ndata: {}\n\n",
                Anthropic,
                Some(usage(6, 4, 2)),
            ),
            (
                "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5}}\n\ndata: [DONE]\n\n",
                OpenAi,
                Some(usage(5, None, None)),
            ),
            (
                "data: {\"meta_info\":{\"prompt_tokens\":5,\"completion_tokens\":1}}\n\ndata: {\"meta_info\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n",
                Sglang,
                Some(usage(5, 2, None)),
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
            (
                r#"{"max_completion_tokens":9,"text":"\"prompt_tokens\":3"}"#,
                OpenAi,
                None,
            ),
            (r#"{"usage":{"prompt_tokens":null}}"#, OpenAi, None),
            (r#"{"usage":{"prompt_tokens":12"#, OpenAi, None),
            (r#"{"usage":{"prompt_tokens":"#, OpenAi, None),
            (
                r#"{"usage":{"prompt_tokens":99999999999999999999999}}"#,
                OpenAi,
                None,
            ),
            ("", OpenAi, None),
        ] {
            assert_eq!(read(tail.as_bytes(), vendor), found, "{tail}");
        }
    }

    #[test]
    fn schema_behind_the_counts_that_has_their_names_changes_none() {
        let reply = br#""usage":{"input_tokens":9,"output_tokens":2},"tools":[{"properties":
            {"input_tokens":{"type":"x"},"output_tokens":4000000000000000000}}],"x":1}"#;
        assert_eq!(read(reply, Vendor::OpenAi), Some(usage(9, 2, None)));
    }

    fn watch() -> UsageWatch {
        UsageWatch {
            vendor: Some(Vendor::OpenAi),
            counts_events: true,
            ..UsageWatch::default()
        }
    }

    #[test]
    fn only_the_end_of_a_reply_is_kept() {
        let mut watch = watch();
        for size in [10, TAIL, 3, TAIL * 3, 5, TAIL - 1, TAIL, TAIL] {
            watch.pass(&vec![b'x'; size]);
            assert!((1..=2 * TAIL).contains(&watch.tail.len()));
            assert!(watch.tail.capacity() <= 2 * TAIL);
        }
    }

    #[test]
    fn counts_are_found_however_the_reply_is_cut() {
        let reply = br#"{"choices":[],"usage":{"prompt_tokens":2000,"completion_tokens":7}}"#;
        for size in 1..=reply.len() {
            let mut watch = watch();
            let mut pieces = reply.chunks(size).peekable();
            while let Some(piece) = pieces.next() {
                if pieces.peek().is_some() {
                    watch.pass(piece);
                } else {
                    watch.pass_last(piece);
                }
            }
            assert_eq!(
                watch.finish(false),
                (Some(usage(2000, 7, None)), 0),
                "{size}"
            );
            assert_eq!(watch.tail.capacity() == 0, size == reply.len());
        }
    }

    #[test]
    fn length_of_tokens_is_learnt_from_the_prompt() {
        let stats = Arc::<TokenStats>::default();
        for _ in 0..20 {
            let mut watch = watch();
            watch.learning = Some(Learning {
                bytes: Some(4000),
                key: None,
                stats: Arc::clone(&stats),
            });
            watch.pass_last(br#"{"usage":{"prompt_tokens":2000,"completion_tokens":70}}"#);
            watch.finish(false);
        }
        assert_eq!(stats.ratio.get().to_bytes(100), 200);
        assert_eq!(stats.outputs.expected(None, None), 70);
    }

    #[test]
    fn length_of_outputs_is_learnt_by_key_and_from_events_where_nothing_is_counted() {
        let stats = Arc::<TokenStats>::default();
        for _ in 0..8 {
            let mut watch = watch();
            watch.counts_events = true;
            watch.learning = Some(Learning {
                bytes: None,
                key: Some(1),
                stats: Arc::clone(&stats),
            });
            for _ in 0..5 {
                watch.pass(b"data: {\"choices\":[]}\n\n");
            }
            watch.pass_last(b"data: [DONE]\n\n");
            watch.finish(true);
        }
        stats.outputs.observe(None, 1000);
        assert_eq!(stats.outputs.expected(Some(1), None), 5);
        assert_eq!(stats.ratio.get(), routing::TextRatio::USUAL);
    }

    #[test]
    fn events_are_counted_without_the_last_one() {
        let mut watch = watch();
        for _ in 0..5 {
            watch.pass(b"data: {\"choices\":[]}\n\n");
        }
        watch.pass_last(b"data: [DONE]\n\n");
        assert_eq!(watch.finish(true), (None, 5));
        // Comments and names of events are none, however the stream is cut.
        let mut named = self::watch();
        for piece in [
            ": ping\n\n",
            "event: a\ndata: {}\n\nevent: b\n",
            "data: {}\n\n",
        ] {
            named.pass(piece.as_bytes());
        }
        named.pass_last(b"data: [DONE]\n\n");
        assert_eq!(named.finish(true), (None, 2));
        assert_eq!(UsageWatch::default().finish(true), (None, 0));
    }
}
