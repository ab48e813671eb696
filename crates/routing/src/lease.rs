//! The load of a worker, counted from the routing decision to the last byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::own_share::OwnShare;
use crate::peer_load::{LoadCounts, PeerLoad};
use crate::reported_load::{LoadFigures, OthersLoad};
use crate::service_costs::{DecodeCosts, Decoded, ServiceCosts};

/// What a request will take of a worker, in tokens, as it is known when the worker is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Prompt tokens that the worker has to compute.
    pub uncached: u64,
    /// Expected output.
    pub output: u64,
}

impl Work {
    /// Memory that the request takes on average while it runs: what is cached there is in memory
    /// already, and perhaps in use by others.
    pub fn kv_tokens(&self) -> u64 {
        self.uncached.saturating_add(self.output / 2)
    }
}

impl From<u64> for Work {
    /// A prompt of which nothing is cached, without output.
    fn from(uncached: u64) -> Self {
        Self {
            uncached,
            output: 0,
        }
    }
}

/// The work of one worker: for this gateway, and for others as far as they say.
///
/// Only a [`Lease`] changes this gateway's part, when it is taken, advanced and dropped. It is never
/// reset. The part of other gateways is set as a whole. A decision reads the sums. What the worker
/// reports beyond them stands beside them.
#[derive(Debug, Default)]
// A decision reads the counters of every worker: they are in one cache line.
#[repr(C, align(64))]
pub struct Load {
    requests: AtomicUsize,
    waiting: AtomicUsize,
    queued_tokens: AtomicU64,
    kv_tokens: AtomicU64,
    kv_capacity: AtomicU64,
    others: OthersLoad,
    prefilled_tokens: AtomicU64,
    costs: ServiceCosts,
    peers: PeerLoad,
    own_share: OwnShare,
}

/// What the requests in flight at a worker take of it, read at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupied {
    pub(crate) requests: usize,
    /// Those that wait for their first byte.
    waiting: usize,
    /// Memory that they take, in tokens.
    pub(crate) kv_tokens: u64,
    /// Memory of the worker in tokens, if it reports that.
    pub(crate) kv_capacity: Option<u64>,
}

impl Occupied {
    /// Requests past their first byte.
    pub(crate) fn decoding(self) -> usize {
        self.requests.saturating_sub(self.waiting)
    }
}

impl Load {
    /// What the requests in flight take, those that only the worker reports included. These count
    /// as past their first byte.
    pub(crate) fn all_occupied(&self) -> Occupied {
        Occupied {
            requests: self.all_requests(),
            waiting: self.waiting.load(Relaxed),
            kv_tokens: self.all_kv_tokens(),
            kv_capacity: self.kv_capacity(),
        }
    }

    /// Requests in flight, of this gateway and of others as far as these say.
    pub fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    /// What is in flight for this gateway.
    pub fn own(&self) -> LoadCounts {
        let all = LoadCounts {
            requests: self.requests(),
            waiting: self.waiting.load(Relaxed),
            queued_tokens: self.queued_tokens(),
            kv_tokens: self.kv_tokens(),
        };
        all.minus(self.peers())
    }

    /// Requests in flight for this gateway.
    pub fn own_requests(&self) -> usize {
        self.requests().saturating_sub(self.peers.requests())
    }

    /// What is in flight for other gateways, as far as they say.
    pub fn peers(&self) -> LoadCounts {
        self.peers.counts()
    }

    /// Sets what is in flight for other gateways. One thread at a time.
    pub fn set_peers(&self, counts: LoadCounts) {
        let before = self.peers.replace(counts);
        let add = |all: &AtomicUsize, next: usize, before: usize| {
            all.fetch_add(next.wrapping_sub(before), Relaxed);
        };
        let add_tokens = |all: &AtomicU64, next: u64, before: u64| {
            all.fetch_add(next.wrapping_sub(before), Relaxed);
        };
        add(&self.requests, counts.requests, before.requests);
        add(&self.waiting, counts.waiting, before.waiting);
        let (queued, kv) = (&self.queued_tokens, &self.kv_tokens);
        add_tokens(queued, counts.queued_tokens, before.queued_tokens);
        add_tokens(kv, counts.kv_tokens, before.kv_tokens);
    }

    /// Requests past their first byte; each occupies a decode slot of the engine.
    pub fn decoding(&self) -> usize {
        let waiting = self.waiting.load(Relaxed);
        self.requests().saturating_sub(waiting)
    }

    /// Prompt tokens believed uncached, of requests that wait for their first byte.
    pub fn queued_tokens(&self) -> u64 {
        self.queued_tokens.load(Relaxed)
    }

    /// Memory that the requests in flight take, in tokens.
    pub fn kv_tokens(&self) -> u64 {
        self.kv_tokens.load(Relaxed)
    }

    /// Memory of the worker in tokens, if it reports that.
    pub fn kv_capacity(&self) -> Option<u64> {
        Some(self.kv_capacity.load(Relaxed)).filter(|capacity| *capacity > 0)
    }

    /// Sets the worker's memory.
    pub fn set_kv_capacity(&self, tokens: Option<u64>) {
        self.kv_capacity.store(tokens.unwrap_or(0), Relaxed);
    }

    /// What this gateway knows of: its own requests, and those of others as far as these say.
    pub fn known(&self) -> LoadFigures {
        LoadFigures {
            requests: self.requests() as u64,
            queued_tokens: self.queued_tokens(),
            kv_tokens: self.kv_tokens(),
        }
    }

    /// The worker reports this, while this gateway knows of `known`: what is beyond that is traffic
    /// that no gateway here speaks of.
    pub fn set_others(&self, reported: LoadFigures, known: LoadFigures) {
        self.others.set(reported, known);
    }

    /// Nothing has been reported for long: the traffic of others is unknown.
    pub fn forget_others(&self) {
        self.others
            .set(LoadFigures::default(), LoadFigures::default());
    }

    /// Requests in flight, those that only the worker reports included.
    pub fn all_requests(&self) -> usize {
        self.requests() + self.others.requests()
    }

    /// Queued prompt tokens, those that only the worker reports included.
    pub fn all_queued_tokens(&self) -> u64 {
        self.queued_tokens() + self.others.queued_tokens()
    }

    /// Memory that requests in flight take, those that only the worker reports included.
    pub fn all_kv_tokens(&self) -> u64 {
        self.kv_tokens() + self.others.kv_tokens()
    }

    /// What decode costs there, as far as it is known.
    pub fn decode_costs(&self) -> Option<DecodeCosts> {
        self.costs.get()
    }

    /// This gateway's part of a limit that several share.
    pub fn own_share(&self) -> &OwnShare {
        &self.own_share
    }

    /// Like [`lease`](Self::lease), but `None` if this gateway has `most` or more requests in flight, or
    /// as many as it is allowed.
    pub fn lease_below(self: &Arc<Self>, most: usize, work: impl Into<Work>) -> Option<Lease> {
        let (peers, most) = (self.peers.requests(), most.min(self.own_share.allowed()));
        let one_more =
            |requests: usize| (requests.saturating_sub(peers) < most).then_some(requests + 1);
        let counted = self.requests.fetch_update(Relaxed, Relaxed, one_more);
        counted.ok()?;
        Some(self.counted(work.into()))
    }

    /// Counts one more request, with its work, until the lease is dropped.
    pub fn lease(self: &Arc<Self>, work: impl Into<Work>) -> Lease {
        self.requests.fetch_add(1, Relaxed);
        self.counted(work.into())
    }

    /// A lease for a request that `requests` counts already.
    fn counted(self: &Arc<Self>, work: Work) -> Lease {
        let kv = work.kv_tokens();
        self.waiting.fetch_add(1, Relaxed);
        let queued = self.queued_tokens.fetch_add(work.uncached, Relaxed);
        self.kv_tokens.fetch_add(kv, Relaxed);
        Lease {
            load: Arc::clone(self),
            waits: true,
            queued: Some(work.uncached),
            uncached: work.uncached,
            first_in_line: queued == 0,
            kv,
            first_at: None,
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
    uncached: u64,
    /// No other prompt was queued when it was taken.
    first_in_line: bool,
    /// Memory that it takes.
    kv: u64,
    first_at: Option<FirstToken>,
    until: Until,
}

/// The worker at the first token of a request.
#[derive(Clone, Copy, Debug)]
struct FirstToken {
    waited: Duration,
    prefilled_tokens: u64,
    kv_tokens: u64,
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
        if self.waits {
            let prefilled = &self.load.prefilled_tokens;
            prefilled.fetch_add(self.uncached, Relaxed);
        }
        self.end_wait();
    }

    fn end_wait(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.load.waiting.fetch_sub(1, Relaxed);
        }
        if self.until == Until::FirstByte {
            self.release_tokens();
        }
    }

    /// The same for a response that comes token by token, so long after the lease was taken. What
    /// it says of the worker's costs is learnt.
    pub fn first_token(&mut self, waited: Duration) {
        if self.first_at.is_some() {
            return;
        }
        self.first_byte();
        let load = &self.load;
        if self.first_in_line {
            let tokens = self.uncached as f64;
            load.costs.observe_prefill(waited.as_secs_f64(), tokens);
        }
        self.first_at = Some(FirstToken {
            waited,
            prefilled_tokens: load.prefilled_tokens.load(Relaxed),
            kv_tokens: load.kv_tokens(),
        });
    }

    /// The response that came token by token is complete, so long after the lease was taken, and
    /// had so many in all.
    pub fn last_token(&mut self, took: Duration, tokens: u64) {
        let Some(first) = self.first_at.take() else {
            return;
        };
        let load = &self.load;
        let prefilled = load.prefilled_tokens.load(Relaxed);
        let contexts = first.kv_tokens.saturating_add(load.kv_tokens());
        load.costs.observe_decode(Decoded {
            secs: took.saturating_sub(first.waited).as_secs_f64(),
            tokens: tokens.saturating_sub(1) as f64,
            contexts: contexts as f64 / 2.0,
            prefilled: prefilled.saturating_sub(first.prefilled_tokens) as f64,
        });
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
        self.end_wait();
        self.release_tokens();
        self.load.kv_tokens.fetch_sub(self.kv, Relaxed);
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
    fn memory_of_a_request_is_what_it_computes_and_half_of_its_output() {
        let load = Arc::new(Load::default());
        let work = Work {
            uncached: 100,
            output: 40,
        };
        let mut lease = load.lease(work);
        lease.first_token(Duration::ZERO);
        assert_eq!((load.kv_tokens(), load.queued_tokens()), (120, 0));
        drop(lease);
        assert_eq!(load.kv_tokens(), 0);
        assert_eq!(load.kv_capacity(), None);
        load.set_kv_capacity(Some(5000));
        assert_eq!(load.kv_capacity(), Some(5000));
    }

    #[test]
    fn prompt_whose_request_ends_without_a_byte_was_not_prefilled() {
        let load = Arc::new(Load::default());
        drop(load.lease(100));
        assert_eq!(load.prefilled_tokens.load(Relaxed), 0);
        load.lease(100).first_byte();
        assert_eq!(load.prefilled_tokens.load(Relaxed), 100);
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

    #[test]
    fn load_of_other_gateways_is_seen_by_decisions_and_not_by_limits() {
        let load = Arc::new(Load::default());
        let own = load.lease(10);
        let peers = LoadCounts {
            requests: 5,
            waiting: 2,
            queued_tokens: 300,
            kv_tokens: 700,
        };
        load.set_peers(peers);
        assert_eq!(counts(&load), (6, 3, 310));
        assert_eq!((load.kv_tokens(), load.peers()), (710, peers));
        assert_eq!((load.own_requests(), load.own().queued_tokens), (1, 10));
        let second = load.lease_below(2, 0);
        assert!(second.is_some() && load.lease_below(2, 0).is_none());
        load.set_peers(LoadCounts {
            requests: 1,
            ..LoadCounts::default()
        });
        drop((own, second));
        assert_eq!((load.own(), load.requests()), (LoadCounts::default(), 1));
        load.set_peers(LoadCounts::default());
        assert_eq!((counts(&load), load.kv_tokens()), ((0, 0, 0), 0));
    }

    #[test]
    fn what_other_gateways_speak_of_is_not_counted_again_when_the_worker_reports_it() {
        let load = Arc::new(Load::default());
        let _own = load.lease(10);
        let peers = LoadCounts {
            requests: 5,
            waiting: 2,
            queued_tokens: 300,
            kv_tokens: 700,
        };
        load.set_peers(peers);
        let reported = LoadFigures {
            requests: 7,
            queued_tokens: 310,
            kv_tokens: 500,
        };
        load.set_others(reported, load.known());
        let all = (load.all_requests(), load.all_queued_tokens());
        assert_eq!((all, load.all_kv_tokens()), ((7, 310), 710));
        // Of their requests some end; the one that only the worker reports stays.
        load.set_peers(LoadCounts::default());
        assert_eq!((load.all_requests(), load.all_queued_tokens()), (2, 10));
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
                    0 => leases.push(load.lease(u64::from(tokens))),
                    1 if !leases.is_empty() => index.get_mut(&mut leases).first_byte(),
                    _ if !leases.is_empty() => drop(leases.swap_remove(index.index(leases.len()))),
                    _ => {}
                }
                prop_assert_eq!(load.requests(), leases.len());
            }
            drop(leases);
            prop_assert_eq!(counts(&load), (0, 0, 0));
            prop_assert_eq!(load.kv_tokens(), 0);
        }
    }
}
