//! Load counted from the routing decision to the last byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What one worker is doing for this gateway.
///
/// Changed only by taking and dropping a [`Lease`]; nothing ever resets it.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicUsize,
}

impl Load {
    /// Requests in flight.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Counts one more request until the lease is dropped.
    pub fn lease(self: &Arc<Self>) -> Lease {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Lease {
            load: Arc::clone(self),
        }
    }
}

/// One request's place at a worker, given back exactly once: by drop.
#[derive(Debug)]
#[must_use = "a dropped lease no longer counts"]
pub struct Lease {
    load: Arc<Load>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.load.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_until_it_is_dropped() {
        let load = Arc::new(Load::default());
        let first = load.lease();
        let second = load.lease();
        assert_eq!(load.requests(), 2);
        drop(first);
        assert_eq!(load.requests(), 1);
        drop(second);
        assert_eq!(load.requests(), 0);
    }
}
