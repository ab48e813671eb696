//! The limits that gateways keep together, as they come and go.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::bucket::Bucket;
use super::shared_queue::SharedQueue;
use super::slots::Slots;

/// Buckets, slots and queues, by the name of their limit, which is the same in all gateways.
#[derive(Debug, Default)]
pub struct SharedLimits {
    buckets: Named<dyn Bucket>,
    slots: Named<dyn Slots>,
    queues: Named<dyn SharedQueue>,
    changes: AtomicU64,
}

/// Limits of a kind, each until it is dropped.
struct Named<T: ?Sized>(Mutex<BTreeMap<Arc<str>, Weak<T>>>);

impl SharedLimits {
    /// Shares a bucket until it is dropped. It takes the place of another one of this name.
    pub fn add(&self, name: &str, bucket: Weak<dyn Bucket>) {
        self.buckets.add(name, bucket);
        self.changes.fetch_add(1, Relaxed);
    }

    /// Shares slots until they are dropped. They take the place of others of this name. None may be
    /// used until this gateway is allowed some.
    pub fn add_slots(&self, name: &str, slots: &Arc<impl Slots + 'static>) {
        slots.allow(0);
        let shared: Weak<dyn Slots> = Arc::downgrade(slots) as _;
        self.slots.add(name, shared);
        self.changes.fetch_add(1, Relaxed);
    }

    /// Shares a queue until it is dropped. It takes the place of another one of this name.
    pub fn add_queue(&self, name: &str, queue: &Arc<impl SharedQueue + 'static>) {
        let shared: Weak<dyn SharedQueue> = Arc::downgrade(queue) as _;
        self.queues.add(name, shared);
        self.changes.fetch_add(1, Relaxed);
    }

    /// How often any were added.
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// All that are left.
    pub fn list(&self) -> Vec<(Arc<str>, Weak<dyn Bucket>)> {
        self.buckets.list()
    }

    /// All slots that are left.
    pub fn list_slots(&self) -> Vec<(Arc<str>, Weak<dyn Slots>)> {
        self.slots.list()
    }

    /// All queues that are left.
    pub fn list_queues(&self) -> Vec<(Arc<str>, Weak<dyn SharedQueue>)> {
        self.queues.list()
    }
}

impl<T: ?Sized> Named<T> {
    fn add(&self, name: &str, limit: Weak<T>) {
        self.lock().insert(name.into(), limit);
    }

    fn list(&self) -> Vec<(Arc<str>, Weak<T>)> {
        let mut limits = self.lock();
        limits.retain(|_, limit| limit.strong_count() > 0);
        let rows = limits.iter();
        rows.map(|(name, limit)| (Arc::clone(name), Weak::clone(limit)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Weak<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Default for Named<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: ?Sized> Debug for Named<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}
