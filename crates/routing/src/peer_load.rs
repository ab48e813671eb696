//! What other gateways have in flight at a worker, as far as they say.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// What is in flight at a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadCounts {
    /// Requests.
    pub requests: usize,
    /// Those of them without a first byte.
    pub waiting: usize,
    /// Their prompt tokens that are believed uncached.
    pub queued_tokens: u64,
    /// Memory that all requests take, in tokens.
    pub kv_tokens: u64,
}

impl LoadCounts {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            waiting: self.waiting + other.waiting,
            queued_tokens: self.queued_tokens + other.queued_tokens,
            kv_tokens: self.kv_tokens + other.kv_tokens,
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            waiting: self.waiting.saturating_sub(other.waiting),
            queued_tokens: self.queued_tokens.saturating_sub(other.queued_tokens),
            kv_tokens: self.kv_tokens.saturating_sub(other.kv_tokens),
        }
    }
}

/// The part of a load that other gateways cause.
#[derive(Debug, Default)]
pub(crate) struct PeerLoad {
    requests: AtomicUsize,
    waiting: AtomicUsize,
    queued_tokens: AtomicU64,
    kv_tokens: AtomicU64,
}

impl PeerLoad {
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    pub(crate) fn counts(&self) -> LoadCounts {
        LoadCounts {
            requests: self.requests(),
            waiting: self.waiting.load(Relaxed),
            queued_tokens: self.queued_tokens.load(Relaxed),
            kv_tokens: self.kv_tokens.load(Relaxed),
        }
    }

    /// Sets the counts, and returns those before.
    pub(crate) fn replace(&self, counts: LoadCounts) -> LoadCounts {
        LoadCounts {
            requests: self.requests.swap(counts.requests, Relaxed),
            waiting: self.waiting.swap(counts.waiting, Relaxed),
            queued_tokens: self.queued_tokens.swap(counts.queued_tokens, Relaxed),
            kv_tokens: self.kv_tokens.swap(counts.kv_tokens, Relaxed),
        }
    }
}
