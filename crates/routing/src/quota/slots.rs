//! Limits on requests at a time: what a gateway has of them.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is done with slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotUse {
    /// Slots that requests hold.
    pub used: u64,
    /// Requests that wait for one.
    pub waiting: u64,
    /// Requests that were refused so far because there was none.
    pub refused: u64,
}

/// Slots that requests hold while they are in progress; how many there are is set from outside.
pub trait Slots: Debug + Send + Sync {
    /// How many all gateways may use together.
    fn total(&self) -> u64;

    /// What is done with them now.
    fn usage(&self) -> SlotUse;

    /// From now on no more than so many are given out. Those that are out stay.
    fn allow(&self, slots: u64);
}

/// Slots whose requests do not wait.
#[derive(Debug)]
pub struct SlotCount {
    total: u64,
    allowed: AtomicU64,
    used: AtomicU64,
    refused: AtomicU64,
}

impl SlotCount {
    /// So many, all of them this gateway's own until it is allowed fewer.
    pub fn new(total: u64) -> Self {
        Self {
            total,
            allowed: AtomicU64::new(total),
            used: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes a slot, if one is left.
    pub fn take(&self) -> bool {
        let allowed = self.allowed.load(Relaxed);
        let next = |used: u64| (used < allowed).then(|| used + 1);
        let taken = self.used.fetch_update(Relaxed, Relaxed, next).is_ok();
        if !taken {
            self.refused.fetch_add(1, Relaxed);
        }
        taken
    }

    /// Gives back a slot that was taken.
    pub fn give_back(&self) {
        let next = |used: u64| used.checked_sub(1);
        let _ = self.used.fetch_update(Relaxed, Relaxed, next);
    }
}

impl Slots for SlotCount {
    fn total(&self) -> u64 {
        self.total
    }

    fn usage(&self) -> SlotUse {
        SlotUse {
            used: self.used.load(Relaxed),
            waiting: 0,
            refused: self.refused.load(Relaxed),
        }
    }

    fn allow(&self, slots: u64) {
        self.allowed.store(slots, Relaxed);
    }
}
