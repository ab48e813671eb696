//! What a client's key may take: requests per minute, and requests at a time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The limits of a key, by the names that `LiteLLM`'s keys have for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyRules {
    pub(super) rpm_limit: Option<NonZeroU32>,
    pub(super) max_parallel_requests: Option<NonZeroU32>,
}

/// The limits in force, and what is left of them.
#[derive(Debug)]
pub(super) struct KeyLimits {
    pub(super) rules: KeyRules,
    rate: Option<Rate>,
    at_a_time: Option<Arc<Semaphore>>,
}

/// A request's share of its key's limits, given back when dropped.
#[derive(Debug)]
pub(crate) struct KeyShare {
    _permit: Option<OwnedSemaphorePermit>,
}

/// A limit that is reached, and when it may not be any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) limit: &'static str,
    pub(super) wait: Duration,
}

impl KeyLimits {
    /// `None` where there are none.
    pub(super) fn new(rules: KeyRules) -> Option<Arc<Self>> {
        let permits = |most: NonZeroU32| Arc::new(Semaphore::new(most.get() as usize));
        let limits = Self {
            rules,
            rate: rules.rpm_limit.map(Rate::new),
            at_a_time: rules.max_parallel_requests.map(permits),
        };
        (limits.rate.is_some() || limits.at_a_time.is_some()).then(|| Arc::new(limits))
    }

    /// Lets a request in, or says which limit is reached; none waits.
    pub(super) fn enter(&self) -> Result<KeyShare, Reached> {
        let permit = match &self.at_a_time {
            None => None,
            Some(permits) => {
                let permit = Arc::clone(permits).try_acquire_owned();
                Some(permit.map_err(|_| Reached {
                    limit: "max_parallel_requests",
                    wait: Duration::from_secs(1),
                })?)
            }
        };
        if let Some(rate) = &self.rate {
            let limit = "rpm_limit";
            rate.take().map_err(|wait| Reached { limit, wait })?;
        }
        Ok(KeyShare { _permit: permit })
    }
}

/// Requests per minute, up to a minute's worth at once: the generic cell rate algorithm.
#[derive(Debug)]
struct Rate {
    begun: Instant,
    /// Time between two requests at the full rate, nanoseconds.
    interval: u64,
    /// When the bucket will be full again, nanoseconds from `begun`.
    full_at: AtomicU64,
}

const MINUTE: u64 = 60_000_000_000;

impl Rate {
    fn new(per_minute: NonZeroU32) -> Self {
        Self {
            begun: Instant::now(),
            interval: MINUTE / u64::from(per_minute.get()),
            full_at: AtomicU64::new(0),
        }
    }

    /// Takes a request's worth, or says how long there will be none.
    fn take(&self) -> Result<(), Duration> {
        let now = self.begun.elapsed().as_nanos() as u64;
        let next = |full_at: u64| {
            let next = full_at.max(now) + self.interval;
            (next <= now + MINUTE).then_some(next)
        };
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, next);
        taken.map(drop).map_err(|full_at| {
            let missing = (full_at.max(now) + self.interval).saturating_sub(now + MINUTE);
            Duration::from_nanos(missing)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn limits(rpm: u32, at_a_time: u32) -> Option<Arc<KeyLimits>> {
        KeyLimits::new(KeyRules {
            rpm_limit: NonZeroU32::new(rpm),
            max_parallel_requests: NonZeroU32::new(at_a_time),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn minutes_worth_may_come_at_once_and_then_one_per_interval() {
        let limits = limits(60, 0).unwrap();
        assert!((0..60).all(|_| limits.enter().is_ok()));
        let reached = limits.enter().unwrap_err();
        assert_eq!(
            (reached.limit, reached.wait),
            ("rpm_limit", Duration::from_secs(1))
        );
        advance(Duration::from_millis(999)).await;
        assert_eq!(limits.enter().unwrap_err().wait, Duration::from_millis(1));
        advance(Duration::from_millis(1)).await;
        assert!(limits.enter().is_ok() && limits.enter().is_err());
        // What is not used is kept for a minute.
        advance(Duration::from_mins(10)).await;
        assert_eq!((0..100).filter(|_| limits.enter().is_ok()).count(), 60);
    }

    #[test]
    fn place_is_given_back_at_the_end_of_its_request() {
        let limits = limits(0, 2).unwrap();
        let (one, _two) = (limits.enter().unwrap(), limits.enter().unwrap());
        assert_eq!(limits.enter().unwrap_err().limit, "max_parallel_requests");
        drop(one);
        assert!(limits.enter().is_ok());
    }

    #[test]
    fn key_without_limits_has_nothing_to_count() {
        assert!(limits(0, 0).is_none());
    }
}
