//! The limits that gateways keep together, as they come and go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::bucket::Bucket;

/// Buckets by the name of their limit, which is the same in all gateways.
#[derive(Debug, Default)]
pub struct SharedLimits {
    buckets: Mutex<BTreeMap<Arc<str>, Weak<dyn Bucket>>>,
    changes: AtomicU64,
}

impl SharedLimits {
    /// Shares a bucket until it is dropped. It takes the place of another one of this name.
    pub fn add(&self, name: &str, bucket: Weak<dyn Bucket>) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.insert(name.into(), bucket);
        self.changes.fetch_add(1, Relaxed);
    }

    /// How often [`add`](Self::add) was called.
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
}
