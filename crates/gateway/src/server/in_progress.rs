//! Requests in progress on one connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts a request as in progress on its connection until dropped.
#[derive(Debug)]
pub(super) struct InProgress(Arc<AtomicUsize>);

impl InProgress {
    pub(super) fn new(busy: &Arc<AtomicUsize>) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(busy))
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
