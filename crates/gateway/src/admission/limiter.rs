//! Limits on inference requests: how many at a time, how many per second, and which wait.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, interval, timeout_at};

use super::waiters::Waiters;
use crate::config::AdmissionSection;
use crate::error::Error;
use crate::telemetry::{AdmissionMetrics, Metrics};

/// Pause between refills of a rate's bucket.
const REFILL_INTERVAL: Duration = Duration::from_millis(10);

/// The limits in force. Without any, a request passes without touching anything shared.
#[derive(Debug)]
pub(crate) struct Admission {
    cap: Option<Cap>,
    rate: Option<Rate>,
    queue: Queue,
    metrics: AdmissionMetrics,
}

/// Requests in flight, from here to the last byte of their replies.
#[derive(Debug)]
struct Cap {
    limit: usize,
    permits: Arc<Semaphore>,
}

/// Requests per second: a token bucket that holds one second's worth. Waiting requests are
/// served in the order of arrival.
#[derive(Debug)]
struct Rate {
    per_second: usize,
    bucket: Semaphore,
}

#[derive(Debug)]
struct Queue {
    limit: usize,
    max_wait: Duration,
    waiting: Waiters,
}

/// A request's share of the cap, given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Admission {
    pub(crate) fn new(options: &AdmissionSection, metrics: &Metrics) -> Self {
        let cap = |limit| Cap {
            limit,
            permits: Arc::new(Semaphore::new(limit)),
        };
        let rate = |per_second| Rate {
            per_second,
            bucket: Semaphore::new(per_second),
        };
        Self {
            cap: options.max_concurrent_requests.map(cap),
            rate: options.rate.map(rate),
            queue: Queue {
                limit: options.queue_size,
                max_wait: options.queue_timeout,
                waiting: Waiters::default(),
            },
            metrics: metrics.admission(),
        }
    }

    /// Lets a request in, perhaps after a wait.
    ///
    /// # Errors
    /// [`Error::QueueFull`] when too many wait, [`Error::QueueTimeout`] after too long a wait.
    pub(crate) async fn admit(&self) -> Result<Permit, Error> {
        if self.cap.is_none() && self.rate.is_none() {
            return Ok(Permit::default());
        }
        let permit = self.enter().await;
        match &permit {
            Ok(_) => self.metrics.allowed.inc(),
            Err(_) => self.metrics.rejected.inc(),
        }
        permit
    }

    async fn enter(&self) -> Result<Permit, Error> {
        let deadline = Instant::now() + self.queue.max_wait;
        if let Some(rate) = &self.rate {
            let taken = if let Ok(taken) = rate.bucket.try_acquire() {
                taken
            } else {
                let taken = rate.bucket.acquire();
                self.wait("rate_limit_tokens_per_second", deadline, taken)
                    .await?
            };
            // The token is not returned: `refill` adds new ones.
            taken.forget();
        }
        let Some(cap) = &self.cap else {
            return Ok(Permit::default());
        };
        let permit = if let Ok(permit) = Arc::clone(&cap.permits).try_acquire_owned() {
            permit
        } else {
            let permit = Arc::clone(&cap.permits).acquire_owned();
            self.wait("max_concurrent_requests", deadline, permit)
                .await?
        };
        Ok(Permit {
            _permit: Some(permit),
        })
    }

    /// Waits in the queue for `permit`.
    async fn wait<T, E>(
        &self,
        what: &'static str,
        deadline: Instant,
        permit: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        let (before, _waiting) = self.queue.waiting.enter();
        if before >= self.queue.limit {
            return Err(Error::QueueFull {
                what,
                waiting: before,
                retry_after: 1,
            });
        }
        // Semaphores are never closed.
        match timeout_at(deadline, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::QueueTimeout {
                what,
                seconds: self.queue.max_wait.as_secs(),
            }),
        }
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.waiting.count()
    }

    /// The limits in force, for the log.
    pub(crate) fn summary(&self, per_worker: Option<usize>) -> String {
        let limits = [
            (
                "max_concurrent_requests",
                self.cap.as_ref().map(|cap| cap.limit),
            ),
            (
                "rate_limit_tokens_per_second",
                self.rate.as_ref().map(|rate| rate.per_second),
            ),
            ("max_requests_per_worker", per_worker),
        ];
        let set = limits
            .into_iter()
            .filter_map(|(name, limit)| Some((name, limit?)));
        let words: Vec<_> = set.map(|(name, limit)| format!("{name} {limit}")).collect();
        if words.is_empty() {
            return "none".to_owned();
        }
        let (size, wait) = (self.queue.limit, self.queue.max_wait.as_secs());
        format!(
            "{}; {size} requests may wait, {wait} s each",
            words.join(", ")
        )
    }

    /// Sets the gauges of the queue; others wait for a worker.
    pub(crate) fn update_gauges(&self, metrics: &Metrics, waiting_for_workers: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let waiting = self.waiting() + waiting_for_workers;
        metrics.http.queued.set(number(waiting));
        metrics.http.queue_limit.set(number(self.queue.limit));
    }

    /// Refills the rate's bucket; ends at once when there is no rate.
    pub(crate) async fn refill(&self) {
        let Some(rate) = &self.rate else { return };
        let started = Instant::now();
        let (mut ticks, mut paid) = (interval(REFILL_INTERVAL), 0);
        loop {
            ticks.tick().await;
            let due = started.elapsed().as_micros() * rate.per_second as u128 / 1_000_000;
            let owed = usize::try_from(due.saturating_sub(paid)).unwrap_or(usize::MAX);
            paid = due;
            let missing = rate
                .per_second
                .saturating_sub(rate.bucket.available_permits());
            rate.bucket.add_permits(owed.min(missing));
        }
    }

    /// What is in force, for `GET /debug/limits`.
    pub(crate) fn to_json(&self) -> Value {
        let in_flight = self
            .cap
            .as_ref()
            .map(|cap| cap.limit - cap.permits.available_permits());
        json!({
            "max_concurrent_requests": self.cap.as_ref().map(|cap| cap.limit),
            "concurrent_requests": in_flight,
            "rate_limit_tokens_per_second": self.rate.as_ref().map(|rate| rate.per_second),
            "queue_size": self.queue.limit,
            "queue_timeout_secs": self.queue.max_wait.as_secs(),
            "queued": self.waiting(),
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use futures_util::poll;

    use super::*;
    use crate::config::Options;

    fn admission(change: impl FnOnce(&mut Options)) -> Admission {
        let mut options = Options {
            queue_size: 2,
            queue_timeout_secs: 5,
            ..Options::default()
        };
        change(&mut options);
        Admission::new(
            &AdmissionSection::from(&options),
            &Metrics::new(None).unwrap(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_limited_by_default() {
        let admission = admission(|options| options.queue_size = 0);
        let permit = join_all((0..10_000).map(|_| admission.admit())).await;
        assert!(permit.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn cap_holds_until_permit_is_dropped_and_queue_is_first_in_first_out() {
        let admission = admission(|options| options.max_concurrent_requests = 1);
        let first = admission.admit().await.unwrap();
        let (mut second, mut third) = (Box::pin(admission.admit()), Box::pin(admission.admit()));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        assert!(matches!(
            admission.admit().await,
            Err(Error::QueueFull { waiting: 2, .. })
        ));
        drop(first);
        assert!(poll!(&mut third).is_pending());
        let second = second.await.unwrap();
        drop(second);
        third.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn wait_ends_after_queue_timeout() {
        let admission = admission(|options| options.max_concurrent_requests = 1);
        let _held = admission.admit().await.unwrap();
        let started = Instant::now();
        let refused = admission.admit().await.unwrap_err();
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        assert_eq!(refused.status().as_u16(), 408);
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_wait_frees_its_place() {
        let admission = admission(|options| options.max_concurrent_requests = 1);
        let held = admission.admit().await.unwrap();
        {
            let mut leaving = Box::pin(admission.admit());
            assert!(poll!(&mut leaving).is_pending());
            assert_eq!(admission.waiting(), 1);
        }
        assert_eq!(admission.waiting(), 0);
        drop(held);
        admission.admit().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn rate_holds_whatever_is_in_flight() {
        let admission = admission(|options| {
            options.rate_limit_tokens_per_second = Some(100);
            options.queue_size = 1000;
        });
        let started = Instant::now();
        let all = join_all((0..300).map(|_| admission.admit()));
        tokio::select! {
            permit = all => assert!(permit.iter().all(Result::is_ok)),
            () = admission.refill() => unreachable!("pays in for ever"),
        }
        let took = started.elapsed();
        assert!(
            took >= Duration::from_secs(2) && took < Duration::from_millis(2100),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn zero_or_negative_limit_means_no_limit() {
        for number in [0, -1] {
            let admission = admission(|options| {
                options.max_concurrent_requests = number;
                options.rate_limit_tokens_per_second = Some(number);
            });
            assert!(admission.cap.is_none() && admission.rate.is_none());
        }
    }
}
