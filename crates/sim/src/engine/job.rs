//! What goes into an engine and what comes out.

use std::time::Duration;

use super::prompt::Prompt;

/// One engine's number for a job, counted up from 0 and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// One sequence to compute.
#[derive(Clone, Debug)]
pub struct Job {
    /// What is prefilled.
    pub prompt: Prompt,
    /// Tokens to make. The first comes out of prefill; 0 ends with prefill (embeddings).
    pub output_tokens: u32,
    /// Report every decode step, not only the first token and the end.
    pub watched: bool,
}

/// Something that happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the engine's clock; never later than the `now` it was asked with.
    pub at: Duration,
    /// To which job.
    pub job: JobId,
    /// What.
    pub kind: EventKind,
}

/// What happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Prefill is over and the first token is there (not for jobs of 0 tokens).
    FirstToken {
        /// Prompt tokens that were in the cache.
        cached_tokens: u32,
    },
    /// A watched job has made this many tokens in all.
    Progress {
        /// Tokens made so far.
        tokens: u32,
    },
    /// The job is over and its slot is free.
    Finished {
        /// Tokens made in all.
        tokens: u32,
        /// Prompt tokens that were in the cache.
        cached_tokens: u32,
    },
}

/// How an engine is sized.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Prompt tokens computed per second, one job at a time; 0 = instantly.
    pub prefill_tokens_per_sec: f64,
    /// What a decode step takes, whatever the batch.
    pub decode_step_base: Duration,
    /// What each sequence of the batch adds to a decode step.
    pub decode_step_per_seq: Duration,
    /// Jobs in prefill and decode together; at least 1.
    pub max_running_requests: usize,
    /// Jobs that may wait; one more is refused.
    pub max_queued_requests: usize,
    /// Prompt tokens the prefix cache holds, in whole pages.
    pub kv_cache_tokens: usize,
    /// Tokens per cache page; at least 1.
    pub page_size: u32,
}

/// The waiting queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request queue is full")]
pub struct QueueFull;

/// What an engine is doing at one moment, and what it has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineLoad {
    /// Jobs in prefill and decode.
    pub running: usize,
    /// Jobs in the queue.
    pub waiting: usize,
    /// Prompt tokens of the waiting jobs that were not in the cache when they arrived.
    pub waiting_uncached_tokens: u64,
    /// Prompt and output tokens of the running jobs.
    pub used_tokens: u64,
    /// Tokens of the pages in the prefix cache.
    pub cached_tokens: u64,
    /// Decode speed of the present batch in tokens per second; 0 when idle or instant.
    pub tokens_per_sec: f64,
    /// Prompt tokens of all jobs that reached prefill, since start.
    pub prompt_tokens_total: u64,
    /// Those of them found in the cache, since start.
    pub cached_tokens_total: u64,
    /// Tokens of finished jobs, since start.
    pub output_tokens_total: u64,
    /// Jobs finished, since start.
    pub finished_total: u64,
    /// Jobs aborted, since start.
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
