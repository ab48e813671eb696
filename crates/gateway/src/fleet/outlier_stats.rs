//! What one worker did since it was last compared with its peers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use routing::Window;

/// Sums of one worker, added up without a lock until they are taken.
#[derive(Debug, Default)]
pub(crate) struct OutlierStats {
    requests: AtomicU64,
    failures: AtomicU64,
    refusals: AtomicU64,
    waited_micros: AtomicU64,
    tokens: AtomicU64,
}

impl OutlierStats {
    /// A request succeeded.
    pub(crate) fn record_success(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// A request failed.
    pub(crate) fn record_failure(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.failures.fetch_add(1, Relaxed);
    }

    /// A request was refused as the client's fault.
    pub(crate) fn record_refusal(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.refusals.fetch_add(1, Relaxed);
    }

    /// The first byte of a stream came after this wait, for so many prompt tokens.
    pub(crate) fn record_first_byte(&self, waited: Duration, tokens: u64) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.waited_micros.fetch_add(micros, Relaxed);
        self.tokens.fetch_add(tokens, Relaxed);
    }

    /// The sums since they were last taken.
    pub(super) fn take(&self) -> Window {
        Window {
            requests: self.requests.swap(0, Relaxed),
            failures: self.failures.swap(0, Relaxed),
            refusals: self.refusals.swap(0, Relaxed),
            waited: Duration::from_micros(self.waited_micros.swap(0, Relaxed)),
            tokens: self.tokens.swap(0, Relaxed),
        }
    }
}
