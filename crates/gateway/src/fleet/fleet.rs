//! The list of workers, and the one way their state changes.

use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use routing::Circuit;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::endpoint::Endpoint;
use super::slots::{Slot, Slots};
use super::status::{Availability, RegistrationStatus, WorkerState};
use super::worker::Worker;
use crate::config::{FleetSection, WorkerUrl};

/// What follows when workers come, change or go. Called after the change, before its caller
/// goes on. A request that is placed at the same time may still see the older snapshot.
pub(crate) trait FleetObserver: Send + Sync {
    /// The workers of some model are others, or a worker restarted or was renamed.
    fn membership_changed(&self);

    /// A worker may be given requests now, or no longer.
    fn availability_changed(&self);
}

/// All workers, by ascending slot.
pub(crate) struct Fleet {
    workers: ArcSwap<Vec<Arc<Worker>>>,
    observer: OnceLock<Weak<dyn FleetObserver>>,
    /// Notified when a worker has joined, changed its availability, or left.
    pub(super) changed: Notify,
    /// Held while workers are added or removed.
    slots: Mutex<Slots>,
    /// Held while a worker's model is set, and while a worker is removed.
    pub(super) model_lock: Mutex<()>,
    options: ArcSwap<FleetSection>,
    /// What the age of routing state is counted from.
    started: Instant,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet")
            .field("workers", &self.workers)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Fleet {
    /// A fleet without workers.
    pub(crate) fn new(options: FleetSection) -> Arc<Self> {
        Arc::new(Self {
            workers: ArcSwap::default(),
            observer: OnceLock::new(),
            changed: Notify::new(),
            slots: Mutex::default(),
            model_lock: Mutex::default(),
            options: ArcSwap::from_pointee(options),
            started: Instant::now(),
        })
    }

    /// How workers are treated.
    pub(super) fn options(&self) -> Guard<Arc<FleetSection>> {
        self.options.load()
    }

    /// Treats workers otherwise from now on. What their breakers have counted stays.
    pub(super) fn set_options(&self, options: FleetSection) {
        let breaker = options.breaker;
        // A worker that is being added was made by the old options, and is in the list after this.
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.options.store(Arc::new(options));
        drop(slots);
        for worker in self.workers().iter() {
            self.update_state(worker, |state| state.set_breaker_rules(breaker));
        }
    }

    /// Sets what hears of changes; only the first call counts.
    pub(crate) fn observe_with(&self, observer: Weak<dyn FleetObserver>) {
        let _ = self.observer.set(observer);
    }

    /// Every worker, ready or not.
    pub(crate) fn workers(&self) -> Arc<Vec<Arc<Worker>>> {
        self.workers.load_full()
    }

    /// Time as policies count it.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time over which a worker that came back gets its full share again.
    pub(crate) fn slow_start(&self) -> Duration {
        self.options.load().slow_start
    }

    /// The worker at a URL, however it is spelt; never one that is draining.
    pub(crate) fn find(&self, url: &str) -> Option<Arc<Worker>> {
        self.find_draining_too(url)
            .filter(|worker| !worker.is_draining())
    }

    /// The worker of this URL, in any spelling; one that drains only if no other has the URL.
    pub(crate) fn find_draining_too(&self, url: &str) -> Option<Arc<Worker>> {
        let url = WorkerUrl::parse(url).ok()?;
        let workers = self.workers();
        let named = workers.iter().filter(|worker| *worker.url() == url);
        named
            .min_by_key(|worker| (worker.is_draining(), !worker.is_first_rank()))
            .cloned()
    }

    /// Waits until a worker joins, changes its availability, or leaves; `look` sees the fleet before
    /// each wait, and ends it by returning something.
    pub(crate) async fn watch<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            // No change from here on is missed.
            changed.as_mut().enable();
            if let Some(seen) = look(self) {
                return seen;
            }
            changed.await;
        }
    }

    /// The routable workers of an endpoint.
    pub(super) fn workers_of(&self, endpoint: &Arc<Endpoint>) -> Vec<Arc<Worker>> {
        let workers = self.workers();
        let of = |worker: &&Arc<Worker>| Arc::ptr_eq(&worker.endpoint, endpoint);
        workers.iter().filter(of).cloned().collect()
    }

    /// Every worker, with one rank of each: what is asked of servers is asked once.
    pub(crate) fn servers(&self) -> Vec<Arc<Worker>> {
        let workers = self.workers();
        let first = workers.iter().filter(|worker| worker.is_first_rank());
        first.cloned().collect()
    }

    /// How many workers are ready.
    pub(crate) fn ready_count(&self) -> usize {
        let workers = self.workers.load();
        workers.iter().filter(|worker| worker.is_ready()).count()
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep_connections(&self) {
        for worker in self.workers().iter() {
            worker.endpoint.client.sweep();
        }
    }

    /// Whether a worker is probed once it is up: then it can be suspected, for a probe can
    /// clear it.
    pub(crate) fn is_probed(&self, endpoint: &Endpoint) -> bool {
        let disabled = endpoint.config.load().spec.health.disabled;
        disabled.map_or(self.options().health_checks, |disabled| !disabled)
    }

    /// The status of the registration of a worker that has never been ready.
    pub(crate) fn registration_status(&self, worker: &Worker) -> Option<RegistrationStatus> {
        let now = self.now();
        worker.with_state(|state| state.registration_status(now))
    }

    /// Adds a worker, at the lowest free slot.
    pub(crate) fn add(&self, make: impl FnOnce(Slot) -> Arc<Worker>) -> Arc<Worker> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = make(slots.take());
        self.workers.rcu(|workers| {
            let at = workers.partition_point(|other| other.slot < worker.slot);
            let mut more = Vec::clone(workers);
            more.insert(at, Arc::clone(&worker));
            more
        });
        drop(slots);
        if worker.endpoint.is_unseen() {
            self.changed.notify_waiters();
        } else {
            self.membership_changed();
        }
        worker
    }

    /// Removes a worker: nothing is kept of it, and its slot is free for the next.
    pub(super) fn remove(&self, worker: &Worker) {
        // A model is set before this, or finds the worker removed.
        let models = self.model_lock.lock();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.workers.rcu(|workers| {
            let stays = workers.iter().filter(|other| other.id != worker.id);
            stays.cloned().collect::<Vec<_>>()
        });
        slots.give_back(worker.slot());
        let url = worker.url().as_str();
        let at_url = before
            .iter()
            .filter(|other| other.url().as_str() == url && other.has_rank_of(worker));
        if at_url.count() < 2 {
            worker.metrics().forget();
        }
        // Not before: a worker that joins at the same URL counts on series of its own.
        drop(slots);
        drop(models);
        self.membership_changed();
    }

    /// How many slots there are, free or not.
    #[cfg(test)]
    pub(crate) fn slot_count(&self) -> usize {
        self.slots.lock().unwrap().count()
    }

    /// Changes a worker's state, and has the observer draw the consequences.
    pub(crate) fn update_state<T>(
        &self,
        worker: &Worker,
        update: impl FnOnce(&mut WorkerState) -> T,
    ) -> (Availability, T) {
        let (before, after, result) = worker.update_state(update);
        if before.circuit != after.circuit {
            let (from, to) = (before.circuit.as_str(), after.circuit.as_str());
            if !worker.endpoint.is_removed() {
                worker.metrics().transition(from, to);
            }
            if after.circuit == Circuit::Open {
                warn!(worker = %worker.url(), from, to, "circuit breaker opened");
            } else {
                info!(worker = %worker.url(), from, to, "circuit breaker changed");
            }
        }
        let eligibility = |it: &Availability| (it.ready, it.selectable, it.fallback);
        if before.member != after.member {
            self.membership_changed();
        } else if eligibility(&before) != eligibility(&after) {
            self.availability_changed();
        }
        (after, result)
    }

    /// The workers of some model are others, or a worker restarted or was renamed.
    pub(super) fn membership_changed(&self) {
        if let Some(observer) = self.observer() {
            observer.membership_changed();
        }
        self.changed.notify_waiters();
    }

    /// A worker may be given requests now, or no longer; or it reported something new.
    pub(super) fn availability_changed(&self) {
        if let Some(observer) = self.observer() {
            observer.availability_changed();
        }
        self.changed.notify_waiters();
    }

    fn observer(&self) -> Option<Arc<dyn FleetObserver>> {
        self.observer.get()?.upgrade()
    }
}
