//! The limits that gateways keep together, as they come and go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::bucket::Bucket;
use super::slots::Slots;

/// Buckets, and slots, by the name of their limit, which is the same in all gateways.
#[derive(Debug, Default)]
pub struct SharedLimits {
    buckets: Mutex<BTreeMap<Arc<str>, Weak<dyn Bucket>>>,
    slots: Mutex<BTreeMap<Arc<str>, Weak<dyn Slots>>>,
    changes: AtomicU64,
}

impl SharedLimits {
    /// Shares a bucket until it is dropped. It takes the place of another one of this name.
    pub fn add(&self, name: &str, bucket: Weak<dyn Bucket>) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.insert(name.into(), bucket);
        self.changes.fetch_add(1, Relaxed);
    }

    /// Shares slots until they are dropped. They take the place of others of this name. None may be
    /// used until this gateway is allowed some.
    pub fn add_slots(&self, name: &str, slots: &Arc<impl Slots + 'static>) {
        slots.allow(0);
        let shared: Weak<dyn Slots> = Arc::downgrade(slots) as _;
        let mut all = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.into(), shared);
        self.changes.fetch_add(1, Relaxed);
    }

    /// How often any were added.
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// All that are left.
    pub fn list(&self) -> Vec<(Arc<str>, Weak<dyn Bucket>)> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|_, bucket| bucket.strong_count() > 0);
        let rows = buckets.iter();
        rows.map(|(name, bucket)| (Arc::clone(name), Weak::clone(bucket)))
            .collect()
    }

    /// All slots that are left.
    pub fn list_slots(&self) -> Vec<(Arc<str>, Weak<dyn Slots>)> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slots| slots.strong_count() > 0);
        let rows = slots.iter();
        rows.map(|(name, slots)| (Arc::clone(name), Weak::clone(slots)))
            .collect()
    }
}
