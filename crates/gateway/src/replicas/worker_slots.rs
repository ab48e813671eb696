//! The limit on requests per worker, which gateways share worker by worker.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use routing::quota::{SharedLimits, SlotUse, Slots};

use crate::balancer::Balancer;
use crate::fleet::Worker;

/// The option, and what gateways call its slots together with the hash of a worker.
const PER_WORKER: &str = "max_requests_per_worker";

/// The workers of this gateway, as far as their limits are shared.
#[derive(Debug)]
pub(super) struct WorkerSlots {
    balancer: Arc<Balancer>,
    workers: Arc<Vec<Arc<Worker>>>,
    per_worker: Option<usize>,
    shared: Vec<Arc<SlotsOfWorker>>,
}

/// How many requests this gateway may have at a worker.
#[derive(Debug)]
struct SlotsOfWorker {
    balancer: Weak<Balancer>,
    worker: Arc<Worker>,
    per_worker: AtomicUsize,
}

impl WorkerSlots {
    pub(super) fn new(balancer: Arc<Balancer>) -> Self {
        Self {
            balancer,
            workers: Arc::default(),
            per_worker: None,
            shared: Vec::new(),
        }
    }

    /// Follows the list of workers, and the limit.
    pub(super) fn follow(&mut self, limits: &SharedLimits) {
        let per_worker = self.balancer.limits().map(|limits| limits.per_worker);
        let workers = self.balancer.fleet.workers();
        if Arc::ptr_eq(&workers, &self.workers) && per_worker == self.per_worker {
            return;
        }
        let most = per_worker.unwrap_or(0);
        for slots in &self.shared {
            slots.per_worker.store(most, Relaxed);
            if per_worker.is_none() {
                // There is no limit any more.
                slots.worker.load.own_share().allow(usize::MAX);
            }
        }
        let is_known = |slots: &Arc<SlotsOfWorker>, worker| Arc::ptr_eq(&slots.worker, worker);
        let before = std::mem::take(&mut self.shared);
        for worker in workers.iter().filter(|_| per_worker.is_some()) {
            let known = before.iter().find(|slots| is_known(slots, worker));
            self.shared.push(known.cloned().unwrap_or_else(|| {
                let slots = Arc::new(SlotsOfWorker {
                    balancer: Arc::downgrade(&self.balancer),
                    worker: Arc::clone(worker),
                    per_worker: AtomicUsize::new(most),
                });
                let name = format!("{PER_WORKER}:{:016x}", worker.name_hash());
                limits.add_slots(&name, &slots);
                slots
            }));
        }
        (self.workers, self.per_worker) = (workers, per_worker);
    }
}

impl Slots for SlotsOfWorker {
    fn total(&self) -> u64 {
        self.per_worker.load(Relaxed) as u64
    }

    fn usage(&self) -> SlotUse {
        SlotUse {
            used: self.worker.load.own_requests() as u64,
            waiting: 0,
            refused: self.worker.load.own_share().found_full(),
        }
    }

    fn allow(&self, slots: u64) {
        let share = self.worker.load.own_share();
        let (before, allowed) = (share.allowed(), usize::try_from(slots));
        let allowed = allowed.unwrap_or(usize::MAX);
        share.allow(allowed);
        if allowed > before
            && let Some(balancer) = self.balancer.upgrade()
        {
            balancer.wake_for(&self.worker);
        }
    }
}
