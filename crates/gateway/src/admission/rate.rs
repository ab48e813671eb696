//! A rate of requests, which may change while some wait for it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use routing::quota::{Bucket, Held, RateLimit};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit, TryAcquireError};
use tokio::time::Instant;

use super::waiters::Waiters;

/// Requests per second: a token bucket that holds one second's worth. Waiting requests are
/// served in the order of arrival.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: AtomicUsize,
    bucket: Semaphore,
    waiting: Waiters,
    /// Requests that found no token.
    missed: AtomicU64,
}

/// What has been paid into a bucket so far.
#[derive(Debug)]
pub(super) struct Paid {
    since: Instant,
    per_second: usize,
    tokens: u128,
}

impl Rate {
    pub(super) fn new(per_second: usize) -> Self {
        Self {
            per_second: AtomicUsize::new(per_second),
            bucket: Semaphore::new(per_second),
            waiting: Waiters::default(),
            missed: AtomicU64::new(0),
        }
    }

    pub(super) fn per_second(&self) -> usize {
        self.per_second.load(SeqCst)
    }

    /// Takes a token, where one is left. It is not returned: [`refill`](Self::refill) adds new ones.
    pub(super) fn try_take(&self) -> Result<(), TryAcquireError> {
        let taken = self.bucket.try_acquire().map(SemaphorePermit::forget);
        taken.inspect_err(|_| {
            self.missed.fetch_add(1, SeqCst);
        })
    }

    /// Takes a token once there is one.
    pub(super) async fn take(&self) -> Result<(), AcquireError> {
        let _waiting = self.waiting.enter();
        self.bucket.acquire().await.map(SemaphorePermit::forget)
    }

    /// Sets another rate; the bucket holds no more than one second of it.
    pub(super) fn set(&self, per_second: usize) {
        self.per_second.store(per_second, SeqCst);
        let surplus = self.bucket.available_permits().saturating_sub(per_second);
        self.bucket.forget_permits(surplus);
    }

    /// Adds what is due since `paid`.
    pub(super) fn refill(&self, paid: &mut Option<Paid>) {
        let per_second = self.per_second();
        let begun = || Paid {
            since: Instant::now(),
            per_second,
            tokens: 0,
        };
        let paid = paid.get_or_insert_with(begun);
        if paid.per_second != per_second {
            *paid = begun();
        }
        let due = paid.since.elapsed().as_micros() * per_second as u128 / 1_000_000;
        let owed = usize::try_from(due.saturating_sub(paid.tokens)).unwrap_or(usize::MAX);
        paid.tokens = due;
        let missing = per_second.saturating_sub(self.bucket.available_permits());
        self.bucket.add_permits(owed.min(missing));
    }

    /// Lets everything through that waits: there is no rate any more.
    pub(super) fn lift(&self) {
        self.bucket.close();
    }
}

/// Where several gateways share the rate: the bucket is filled by what they take of it.
impl Bucket for Rate {
    fn limit(&self) -> RateLimit {
        RateLimit {
            units: self.per_second() as u64,
            period: Duration::from_secs(1),
        }
    }

    fn held(&self) -> Held {
        let free = self.bucket.available_permits() as u64;
        let waiting = self.waiting.count() as u64;
        Held {
            level: 0_i64
                .saturating_add_unsigned(free)
                .saturating_sub_unsigned(waiting),
            refused: self.missed.load(SeqCst),
        }
    }

    fn pour(&self, units: u64) {
        let room = Semaphore::MAX_PERMITS - self.bucket.available_permits();
        self.bucket.add_permits((units as usize).min(room));
    }

    fn draw(&self, most: u64) -> u64 {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.bucket.forget_permits(most) as u64
    }
}
