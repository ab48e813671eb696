//! A gateway's own part of a limit on requests at a worker.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// What this gateway may have there, where several share the limit.
#[derive(Debug)]
pub struct OwnShare {
    allowed: AtomicUsize,
    found_full: AtomicU64,
}

impl Default for OwnShare {
    fn default() -> Self {
        Self {
            allowed: AtomicUsize::new(usize::MAX),
            found_full: AtomicU64::new(0),
        }
    }
}

impl OwnShare {
    /// Requests that it may have there.
    pub fn allowed(&self) -> usize {
        self.allowed.load(Relaxed)
    }

    /// Sets that.
    pub fn allow(&self, requests: usize) {
        self.allowed.store(requests, Relaxed);
    }

    /// Decisions so far that found it used up.
    pub fn found_full(&self) -> u64 {
        self.found_full.load(Relaxed)
    }

    /// Whether so many requests use it up, or are `most`.
    pub fn is_full(&self, requests: usize, most: usize) -> bool {
        let is_used_up = requests >= self.allowed();
        if is_used_up {
            self.found_full.fetch_add(1, Relaxed);
        }
        is_used_up || requests >= most
    }
}
