//! What a worker has done since it joined: sums, of which a reader takes differences.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Sums of one worker, on a cache line of their own: lanes add to them, readers are rare.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct WorkerTotals {
    prompt_tokens: AtomicU64,
    predicted_tokens: AtomicU64,
    reported_prompt_tokens: AtomicU64,
    reported_tokens: AtomicU64,
    first_events: AtomicU64,
    first_event_micros: AtomicU64,
}

/// Those sums at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Prompt tokens of requests for which routing predicted how many are cached.
    pub(crate) prompt_tokens: u64,
    /// Those of them that routing predicted to be cached.
    pub(crate) predicted_tokens: u64,
    /// Prompt tokens of replies that report how many were cached.
    pub(crate) reported_prompt_tokens: u64,
    /// Those of them that were cached.
    pub(crate) reported_tokens: u64,
    /// Streams whose first event has come.
    pub(crate) first_events: u64,
    /// How long they took from the routing decision to that event, together.
    pub(crate) first_event_wait: Duration,
}

impl WorkerTotals {
    /// Routing predicted that so many tokens of a prompt are cached.
    pub(crate) fn predict(&self, prompt: u64, cached: u64) {
        self.prompt_tokens.fetch_add(prompt, Relaxed);
        self.predicted_tokens.fetch_add(cached, Relaxed);
    }

    /// A reply reports that so many tokens of its prompt were cached.
    pub(crate) fn report(&self, prompt: u64, cached: u64) {
        self.reported_prompt_tokens.fetch_add(prompt, Relaxed);
        self.reported_tokens.fetch_add(cached, Relaxed);
    }

    /// The first event of a stream came after so long.
    pub(crate) fn first_event(&self, wait: Duration) {
        let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        self.first_events.fetch_add(1, Relaxed);
        self.first_event_micros.fetch_add(micros, Relaxed);
    }

    /// The sums now.
    pub(crate) fn read(&self) -> Totals {
        Totals {
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            predicted_tokens: self.predicted_tokens.load(Relaxed),
            reported_prompt_tokens: self.reported_prompt_tokens.load(Relaxed),
            reported_tokens: self.reported_tokens.load(Relaxed),
            first_events: self.first_events.load(Relaxed),
            first_event_wait: Duration::from_micros(self.first_event_micros.load(Relaxed)),
        }
    }
}
