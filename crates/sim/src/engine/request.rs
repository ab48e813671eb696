//! Input and output of an engine: requests, events, options and load.

use std::time::Duration;

use super::prompt::Prompt;
use super::shared::SharedOptions;

/// Number of a request at one engine, counted up from 0 and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One sequence to compute.
#[derive(Clone, Debug)]
pub struct SimRequest {
    /// The prompt to prefill.
    pub prompt: Prompt,
    /// Tokens to generate. Prefill yields the first; 0 ends with prefill (embeddings).
    pub output_tokens: u32,
    /// The most tokens that it may generate, as far as the engine knows; less than
    /// `output_tokens` counts as these.
    pub longest_output: u32,
    /// Report every decode step, not only the first token and the end.
    pub watched: bool,
}

/// An event of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Time by the engine's clock; never later than the `now` of the call that returned it.
    pub at: Duration,
    /// The request.
    pub request: RequestId,
    /// The kind.
    pub kind: EventKind,
}

/// Kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Prefill has ended and the first token exists (not for requests of 0 tokens).
    FirstToken {
        /// Prompt tokens found in the cache.
        cached_tokens: u32,
    },
    /// A watched request has generated more tokens.
    Progress {
        /// Tokens generated so far.
        tokens: u32,
    },
    /// The request has ended and its slot is free.
    Finished {
        /// Tokens generated in all.
        tokens: u32,
        /// Prompt tokens found in the cache.
        cached_tokens: u32,
    },
}

/// Where prompts are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PromptSource {
    /// Here. The plain model's speed in tokens per second, 0 = instantly.
    Computed(f64),
    /// Elsewhere: they arrive with their KV cache.
    Received,
}

/// Size and speed of an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Prompt tokens computed per second, one request at a time; 0 = instantly.
    pub prefill_tokens_per_sec: f64,
    /// Duration of a decode step, independent of the batch.
    pub decode_step_base: Duration,
    /// Duration that each sequence of the batch adds to a decode step.
    pub decode_step_per_seq: Duration,
    /// Requests in prefill and decode together; at least 1.
    pub max_running_requests: usize,
    /// Requests that may wait; one more is rejected.
    pub max_queued_requests: usize,
    /// Prompt tokens the prefix cache holds, in whole pages.
    pub kv_cache_tokens: usize,
    /// Tokens per cache page; at least 1.
    pub page_size: u32,
    /// Prefill and decode share a device and its memory; `kv_cache_tokens` is all of that memory,
    /// and the speeds above do not count.
    pub shared: Option<SharedOptions>,
}

/// The waiting queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request queue is full")]
pub struct QueueFull;

/// Load of an engine at one moment, and its totals since start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineLoad {
    /// Requests in prefill and decode.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// Prompt tokens of the waiting requests that were not in the cache when they arrived.
    pub waiting_uncached_tokens: u64,
    /// Prompt and output tokens of the running requests.
    pub used_tokens: u64,
    /// Tokens of the pages in the prefix cache.
    pub cached_tokens: u64,
    /// Decode speed of the current batch in tokens per second; 0 when idle or instant.
    pub tokens_per_sec: f64,
    /// Prompt tokens of all requests that reached prefill, since start.
    pub prompt_tokens_total: u64,
    /// Prompt tokens of them found in the cache, since start.
    pub cached_tokens_total: u64,
    /// Prompt tokens computed, again after a lack of memory too, since start.
    pub computed_tokens_total: u64,
    /// Requests sent back to the queue for lack of memory, since start.
    pub retracted_total: u64,
    /// Time spent on prompts, since start.
    pub prefill_time: Duration,
    /// Time spent on decode steps beside that, since start.
    pub decode_time: Duration,
    /// Tokens of finished requests, since start.
    pub output_tokens_total: u64,
    /// Requests finished, since start.
    pub finished_total: u64,
    /// Requests aborted, since start.
    pub aborted_total: u64,
}

impl EngineLoad {
    /// Share of prompt tokens found in the cache since start, 0 to 1.
    pub fn cache_hit_rate(&self) -> f64 {
        match self.prompt_tokens_total {
            0 => 0.0,
            all => self.cached_tokens_total as f64 / all as f64,
        }
    }
}
