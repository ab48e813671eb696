//! The load of a worker, counted from the routing decision to the last byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The work of one worker for this gateway.
///
/// Only a [`Lease`] changes it, when it is taken, advanced and dropped. It is never reset.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicUsize,
    waiting: AtomicUsize,
    queued_tokens: AtomicU64,
}

impl Load {
    /// Requests in flight.
    pub fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    /// Requests past their first byte; each occupies a decode slot of the engine.
    pub fn decoding(&self) -> usize {
        self.requests().saturating_sub(self.waiting.load(Relaxed))
    }

    /// Prompt tokens believed uncached, of requests that wait for their first byte.
    pub fn queued_tokens(&self) -> u64 {
        self.queued_tokens.load(Relaxed)
    }

    /// Like [`lease`](Self::lease), but `None` if `most` or more requests are in flight.
    pub fn lease_below(self: &Arc<Self>, most: usize, uncached_tokens: u64) -> Option<Lease> {
        let one_more = |requests| (requests < most).then_some(requests + 1);
        self.requests
            .fetch_update(Relaxed, Relaxed, one_more)
            .ok()?;
        Some(self.counted(uncached_tokens))
    }

    /// Counts one more request, with its prompt tokens to prefill, until the lease is dropped.
    pub fn lease(self: &Arc<Self>, uncached_tokens: u64) -> Lease {
        self.requests.fetch_add(1, Relaxed);
        self.counted(uncached_tokens)
    }

    /// A lease for a request that `requests` counts already.
    fn counted(self: &Arc<Self>, uncached_tokens: u64) -> Lease {
        self.waiting.fetch_add(1, Relaxed);
        self.queued_tokens.fetch_add(uncached_tokens, Relaxed);
        Lease {
            load: Arc::clone(self),
            waits: true,
            queued: Some(uncached_tokens),
            until: Until::FirstByte,
        }
    }
}

/// One request in flight at a worker. Its drop ends it, exactly once.
#[derive(Debug)]
#[must_use = "a dropped lease no longer counts"]
pub struct Lease {
    load: Arc<Load>,
    /// The first byte has not come.
    waits: bool,
    /// Prompt tokens that count.
    queued: Option<u64>,
    until: Until,
}

/// How long the prompt tokens of a lease count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// They are prefilled then.
    FirstByte,
    /// They occupy a decode worker's memory.
    Dropped,
}

impl Lease {
    /// Records that the response has begun: the prompt is prefilled, the request now decodes.
    pub fn first_byte(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.load.waiting.fetch_sub(1, Relaxed);
        }
        if self.until == Until::FirstByte {
            self.release_tokens();
        }
    }

    /// The same at a decode worker: the tokens of the prompt count until the request has ended.
    pub fn holding_tokens(mut self) -> Self {
        self.until = Until::Dropped;
        self
    }

    fn release_tokens(&mut self) {
        if let Some(tokens) = self.queued.take() {
            self.load.queued_tokens.fetch_sub(tokens, Relaxed);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.first_byte();
        self.release_tokens();
        self.load.requests.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(load: &Load) -> (usize, usize, u64) {
        (load.requests(), load.decoding(), load.queued_tokens())
    }

    #[test]
    fn lease_counts_until_dropped() {
        let load = Arc::new(Load::default());
        let mut first = load.lease(100);
        let second = load.lease(7);
        assert_eq!(counts(&load), (2, 0, 107));
        first.first_byte();
        first.first_byte();
        assert_eq!(counts(&load), (2, 1, 7));
        drop(second);
        assert_eq!(counts(&load), (1, 1, 0));
        drop(first);
        assert_eq!(counts(&load), (0, 0, 0));
    }

    #[test]
    fn prompt_at_a_decode_worker_counts_until_the_request_has_ended() {
        let load = Arc::new(Load::default());
        let mut lease = load.lease(100).holding_tokens();
        lease.first_byte();
        assert_eq!(counts(&load), (1, 1, 100));
        drop(lease);
        assert_eq!(counts(&load), (0, 0, 0));
    }

    #[test]
    fn full_worker_gives_no_lease() {
        let load = Arc::new(Load::default());
        let first = load.lease_below(2, 5).unwrap();
        let _second = load.lease_below(2, 5).unwrap();
        assert!(load.lease_below(2, 5).is_none());
        assert_eq!(counts(&load), (2, 0, 10));
        drop(first);
        assert!(load.lease_below(2, 5).is_some());
    }

    proptest! {
        #[test]
        fn counters_are_zero_after_all_leases_are_dropped(
            steps in prop::collection::vec((any::<u16>(), 0..3_u8, any::<prop::sample::Index>()), 0..100),
        ) {
            let load = Arc::new(Load::default());
            let mut leases = Vec::new();
            for (tokens, step, index) in steps {
                match step {
                    0 => leases.push(load.lease(tokens.into())),
                    1 if !leases.is_empty() => index.get_mut(&mut leases).first_byte(),
                    _ if !leases.is_empty() => drop(leases.swap_remove(index.index(leases.len()))),
                    _ => {}
                }
                prop_assert_eq!(load.requests(), leases.len());
            }
            drop(leases);
            prop_assert_eq!(counts(&load), (0, 0, 0));
        }
    }
}
