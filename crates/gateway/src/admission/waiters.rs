//! How many requests wait, counted by guards.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Counts requests that wait.
#[derive(Debug, Default)]
pub(super) struct Waiters(AtomicUsize);

/// Counts as one that waits until dropped.
pub(super) struct Waiting<'a>(&'a Waiters);

impl Waiters {
    /// Requests that wait.
    pub(super) fn count(&self) -> usize {
        self.0.load(SeqCst)
    }

    /// One more waits; returns how many did before.
    pub(super) fn enter(&self) -> (usize, Waiting<'_>) {
        (self.0.fetch_add(1, SeqCst), Waiting(self))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}
