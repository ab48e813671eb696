//! What a gateway holds of a limit.

use std::fmt::Debug;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// So many units per period; a period's worth may be used at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// At least one.
    pub units: u64,
    /// Above zero.
    pub period: Duration,
}

/// What a bucket shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Units that may be used; below zero by those that are owed, or waited for.
    pub level: i64,
    /// Units that were refused so far.
    pub refused: u64,
}

/// Units that requests use, and that are poured in from outside.
pub trait Bucket: Debug + Send + Sync {
    /// The limit that it is a part of.
    fn limit(&self) -> RateLimit;

    /// What it holds now.
    fn held(&self) -> Held;

    /// Adds units.
    fn pour(&self, units: u64);

    /// Takes out what it holds, at most so many units; returns how many.
    fn draw(&self, most: u64) -> u64;

    /// So many units are meant to be in it: enough for a request of any size.
    fn aim(&self, _units: u64) {}
}

/// A bucket whose requests do not wait.
#[derive(Debug)]
pub struct Quota {
    limit: RateLimit,
    level: AtomicI64,
    refused: AtomicU64,
    enough: AtomicI64,
}

impl RateLimit {
    /// How long so many units take at the full rate.
    pub fn time_of(&self, units: u64) -> Duration {
        let nanos = self.period.as_nanos().saturating_mul(units.into());
        let nanos = nanos.div_ceil(self.units.max(1).into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The period in microseconds, as servers count it.
    pub fn period_micros(&self) -> u64 {
        self.period.as_micros() as u64
    }

    /// What each of so many gateways holds without a request: its part of half the limit, and at
    /// least one unit where there are more units than gateways.
    pub fn reserve(&self, gateways: u64) -> u64 {
        let gateways = gateways.max(1);
        let least = u64::from(self.units > gateways);
        (self.units / gateways.saturating_mul(2)).max(least)
    }

    /// What the shared bucket holds when it is full: what is not held by gateways.
    pub fn unreserved(&self, gateways: u64) -> u64 {
        let reserved = self.reserve(gateways).saturating_mul(gateways.max(1));
        self.units.saturating_sub(reserved).max(1)
    }
}

impl Quota {
    /// A full one: what is in it is replaced once there is a server.
    pub fn new(limit: RateLimit) -> Self {
        let all = signed(limit.units);
        Self {
            limit,
            level: AtomicI64::new(all),
            refused: AtomicU64::new(0),
            enough: AtomicI64::new(all),
        }
    }

    /// Takes units, or says how long they take at the full rate. A quota as full as it is meant to
    /// be is enough for any number: what is above it is owed.
    ///
    /// # Errors
    /// Too few are held.
    pub fn take(&self, units: u64) -> Result<(), Duration> {
        let wanted = signed(units);
        let least = wanted.min(self.enough.load(Relaxed).max(1));
        let next = |level: i64| (level >= least).then(|| level.saturating_sub(wanted));
        let taken = self.level.fetch_update(Relaxed, Relaxed, next);
        taken.map(drop).map_err(|level| {
            self.refused.fetch_add(units, Relaxed);
            let missing = least.saturating_sub(level);
            self.limit.time_of(missing.unsigned_abs())
        })
    }

    /// So many units more have been used, whether they were held or not.
    pub fn add(&self, units: u64) {
        self.change(signed(units).saturating_neg());
    }

    /// So many units have not been used after all.
    pub fn give_back(&self, units: u64) {
        self.change(signed(units));
    }

    fn change(&self, by: i64) {
        let next = |level: i64| Some(level.saturating_add(by));
        let _ = self.level.fetch_update(Relaxed, Relaxed, next);
    }
}

impl Bucket for Quota {
    fn limit(&self) -> RateLimit {
        self.limit
    }

    fn held(&self) -> Held {
        Held {
            level: self.level.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }

    fn pour(&self, units: u64) {
        self.change(signed(units));
    }

    fn draw(&self, most: u64) -> u64 {
        let most = signed(most);
        let next = |level: i64| (level > 0).then(|| level - level.min(most));
        let before = self.level.fetch_update(Relaxed, Relaxed, next);
        before.map_or(0, |level| level.min(most).unsigned_abs())
    }

    fn aim(&self, units: u64) {
        self.enough.store(signed(units), Relaxed);
    }
}

fn signed(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}
