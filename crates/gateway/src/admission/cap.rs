//! The cap on requests in flight, which may change while some are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use routing::quota::{SlotUse, Slots};
use tokio::sync::{AcquireError, Semaphore, TryAcquireError};

use super::fair_line::FairLine;
use super::waiters::Waiters;

/// Requests in flight, from here to the last byte of their replies.
#[derive(Debug)]
pub(super) struct Cap {
    /// What is configured: for all gateways together, where they share it.
    configured: AtomicUsize,
    /// What this gateway may have.
    limit: AtomicUsize,
    permits: Semaphore,
    /// Permits that are out and are not to come back: the cap has become smaller.
    surplus: AtomicUsize,
    waiting: Waiters,
    /// Requests that found no share and were not to wait, or not for longer.
    refused: AtomicU64,
    /// Where requests wait in the fair order.
    pub(super) line: FairLine,
}

/// A share of the cap, given back when dropped.
#[derive(Debug)]
pub(super) struct Share(Arc<Cap>);

impl Cap {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            configured: AtomicUsize::new(limit),
            limit: AtomicUsize::new(limit),
            permits: Semaphore::new(limit),
            surplus: AtomicUsize::new(0),
            waiting: Waiters::default(),
            refused: AtomicU64::new(0),
            line: FairLine::default(),
        }
    }

    /// What is configured.
    pub(super) fn configured(&self) -> usize {
        self.configured.load(SeqCst)
    }

    /// Notes what is configured, which others divide.
    pub(super) fn configure(&self, limit: usize) {
        self.configured.store(limit, SeqCst);
    }

    fn limit(&self) -> usize {
        self.limit.load(SeqCst)
    }

    /// A request has been refused.
    pub(super) fn note_refusal(&self) {
        self.refused.fetch_add(1, SeqCst);
    }

    /// Shares that are out.
    pub(super) fn in_flight(&self) -> usize {
        let all = self.limit() + self.surplus.load(SeqCst);
        all.saturating_sub(self.permits.available_permits())
    }

    /// A share, where one is left.
    pub(super) fn try_share(self: &Arc<Self>) -> Result<Share, TryAcquireError> {
        self.permits.try_acquire()?.forget();
        Ok(Share(Arc::clone(self)))
    }

    /// A share, once one is left; first come, first served.
    pub(super) async fn share(self: &Arc<Self>) -> Result<Share, AcquireError> {
        let _waiting = self.waiting.enter();
        self.permits.acquire().await?.forget();
        Ok(Share(Arc::clone(self)))
    }

    /// Sets another limit. Shares that are out stay; only one call at a time.
    pub(super) fn resize(&self, limit: usize) {
        let before = self.limit.swap(limit, SeqCst);
        if let Some(more) = limit.checked_sub(before) {
            let kept = self.settle(more);
            self.permits.add_permits(more - kept);
            self.line.call_all();
        } else {
            self.surplus.fetch_add(before - limit, SeqCst);
            self.collect();
        }
    }

    /// Takes permits that are not out for those that are not to come back.
    fn collect(&self) {
        while self.permits.available_permits() > 0 && self.settle(1) == 1 {
            if self.permits.forget_permits(1) == 0 {
                self.surplus.fetch_add(1, SeqCst);
            }
        }
    }

    /// Lets everything in that waits: there is no cap any more.
    pub(super) fn lift(&self) {
        self.permits.close();
        self.line.call_all();
    }

    /// Takes up to so many off the surplus; returns how many.
    fn settle(&self, most: usize) -> usize {
        let less = |surplus: usize| (surplus > 0).then(|| surplus.saturating_sub(most));
        let before = self.surplus.fetch_update(SeqCst, SeqCst, less);
        before.map_or(0, |before| before.min(most))
    }

    fn release(&self) {
        if self.settle(1) == 0 {
            self.permits.add_permits(1);
            // A smaller cap that came meanwhile.
            if self.surplus.load(SeqCst) > 0 {
                self.collect();
            }
            self.line.call_next(None);
        }
    }
}

/// Where several gateways share the cap: this one has what it is allowed.
impl Slots for Cap {
    fn total(&self) -> u64 {
        self.configured() as u64
    }

    fn usage(&self) -> SlotUse {
        let waiting = self.waiting.count() + self.line.waiting();
        SlotUse {
            used: self.in_flight() as u64,
            waiting: waiting as u64,
            refused: self.refused.load(SeqCst),
        }
    }

    fn allow(&self, slots: u64) {
        let most = usize::try_from(slots).unwrap_or(usize::MAX);
        self.resize(most.min(Semaphore::MAX_PERMITS));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Enter,
        Leave(usize),
        Resize(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Enter),
            3 => (0..32_usize).prop_map(Step::Leave),
            1 => (1..12_usize).prop_map(Step::Resize),
        ]
    }

    proptest! {
        #[test]
        fn entry_is_granted_exactly_while_fewer_are_in_flight_than_the_limit(
            steps in prop::collection::vec(step(), 0..200)
        ) {
            let (cap, mut shares, mut limit) = (Arc::new(Cap::new(4)), Vec::new(), 4);
            for step in steps {
                match step {
                    Step::Enter => {
                        let share = cap.try_share();
                        prop_assert_eq!(share.is_ok(), shares.len() < limit);
                        shares.extend(share);
                    }
                    Step::Leave(at) if !shares.is_empty() => {
                        drop(shares.swap_remove(at % shares.len()));
                    }
                    Step::Leave(_) => {}
                    Step::Resize(to) => {
                        limit = to;
                        cap.resize(to);
                    }
                }
                prop_assert_eq!((cap.in_flight(), cap.limit()), (shares.len(), limit));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn larger_cap_lets_those_in_that_wait() {
        let cap = Arc::new(Cap::new(1));
        let first = cap.try_share().unwrap();
        let mut second = Box::pin(cap.share());
        assert!(futures_util::poll!(&mut second).is_pending());
        cap.resize(2);
        let second = second.await.unwrap();
        cap.resize(1);
        assert!(cap.try_share().is_err());
        drop(first);
        assert!(cap.try_share().is_err());
        drop(second);
        assert!(cap.try_share().is_ok());
    }
}
