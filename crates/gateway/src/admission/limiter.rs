//! Limits on inference requests: how many at a time, how many per second, and which wait.

use std::future::pending;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use routing::FairRules;
use routing::quota::{Bucket, SharedLimits};
use serde_json::{Value, json};
use tokio::sync::{AcquireError, Notify, TryAcquireError};
use tokio::time::{Instant, interval, timeout_at};

use super::asker::Asker;
use super::cap::{Cap, Share};
use super::fair_line::LineLimits;
use super::queue_error::QueueError;
use super::rate::Rate;
use super::waiters::Waiters;
use crate::config::AdmissionSection;
use crate::error::Error;
use crate::telemetry::{AdmissionMetrics, Metrics};

/// Pause between refills of a rate's bucket.
const REFILL_INTERVAL: Duration = Duration::from_millis(10);

/// Options, and the names under which gateways share them.
const RATE: &str = "rate_limit_tokens_per_second";
const CAP: &str = "max_concurrent_requests";

/// The limits in force. Without any, a request passes without touching anything shared.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: ArcSwap<Limits>,
    waiting: Waiters,
    /// Notified when there is a rate.
    rate_set: Notify,
    /// Where other gateways share the rate and the cap.
    shared: Option<Arc<SharedLimits>>,
    metrics: AdmissionMetrics,
}

#[derive(Debug)]
struct Limits {
    cap: Option<Arc<Cap>>,
    rate: Option<Arc<Rate>>,
    /// Requests that may wait.
    queue_size: usize,
    max_wait: Duration,
    fair: Option<FairRules>,
}

/// A request's share of the cap, given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    _share: Option<Share>,
}

impl Admission {
    pub(crate) fn new(options: &AdmissionSection, metrics: &Metrics) -> Self {
        let cap = options.max_concurrent_requests.map(Cap::new);
        let rate = options.rate.map(Rate::new);
        Self {
            limits: ArcSwap::from_pointee(Limits {
                cap: cap.map(Arc::new),
                rate: rate.map(Arc::new),
                queue_size: options.queue_size,
                max_wait: options.queue_timeout,
                fair: options.fair,
            }),
            waiting: Waiters::default(),
            rate_set: Notify::new(),
            shared: None,
            metrics: metrics.admission(),
        }
    }

    /// Shares rate and cap with other gateways: what this one has of them is set from outside.
    pub(crate) fn sharing(mut self, shared: Option<Arc<SharedLimits>>) -> Self {
        self.shared = shared;
        let limits = self.limits.load_full();
        limits.rate.iter().for_each(|rate| self.share(rate));
        limits.cap.iter().for_each(|cap| self.share_cap(cap));
        self
    }

    fn share_cap(&self, cap: &Arc<Cap>) {
        self.shared.iter().for_each(|it| it.add_slots(CAP, cap));
    }

    fn share(&self, rate: &Arc<Rate>) {
        let bucket: Weak<Rate> = Arc::downgrade(rate);
        let shared = self.shared.iter();
        shared.for_each(|it| it.add(RATE, Weak::clone(&bucket) as Weak<dyn Bucket>));
    }

    /// Sets other limits. Requests in flight keep their shares, those that wait their places; a cap
    /// where there was none counts from here. Only one call at a time.
    pub(crate) fn set(&self, options: &AdmissionSection) {
        let before = self.limits.load_full();
        let cap = match (&before.cap, options.max_concurrent_requests) {
            (Some(cap), Some(limit)) => {
                cap.configure(limit);
                if self.shared.is_none() {
                    cap.resize(limit);
                }
                Some(Arc::clone(cap))
            }
            (_, limit) => limit.map(|limit| {
                let cap = Arc::new(Cap::new(limit));
                self.share_cap(&cap);
                cap
            }),
        };
        let rate = match (&before.rate, options.rate) {
            (Some(rate), Some(per_second)) => {
                rate.set(per_second);
                Some(Arc::clone(rate))
            }
            (_, per_second) => per_second.map(|per_second| {
                let rate = Arc::new(Rate::new(per_second));
                self.share(&rate);
                rate
            }),
        };
        let (no_cap, no_rate) = (cap.is_none(), rate.is_none());
        self.limits.store(Arc::new(Limits {
            cap,
            rate,
            queue_size: options.queue_size,
            max_wait: options.queue_timeout,
            fair: options.fair,
        }));
        // Those that wait for a limit that is gone wait no longer.
        before
            .cap
            .iter()
            .filter(|_| no_cap)
            .for_each(|cap| cap.lift());
        before
            .rate
            .iter()
            .filter(|_| no_rate)
            .for_each(|rate| rate.lift());
        self.rate_set.notify_one();
    }

    /// Lets a request in, perhaps after a wait.
    ///
    /// # Errors
    /// [`Error::QueueFull`] when too many wait, [`Error::QueueTimeout`] after too long a wait.
    pub(crate) async fn admit(&self, asker: impl FnOnce() -> Asker) -> Result<Permit, Error> {
        let limits = {
            let limits = self.limits.load();
            if limits.cap.is_none() && limits.rate.is_none() {
                return Ok(Permit::default());
            }
            Guard::into_inner(limits)
        };
        let permit = self.enter(&limits, asker).await;
        match &permit {
            Ok(_) => self.metrics.allowed.inc(),
            Err(_) => self.metrics.rejected.inc(),
        }
        permit
    }

    async fn enter(&self, limits: &Limits, asker: impl FnOnce() -> Asker) -> Result<Permit, Error> {
        let deadline = Instant::now() + limits.max_wait;
        if let Some(rate) = &limits.rate
            && matches!(rate.try_take(), Err(TryAcquireError::NoPermits))
        {
            self.wait(RATE, limits, deadline, rate.take()).await?;
        }
        let Some(cap) = &limits.cap else {
            return Ok(Permit::default());
        };
        let free = if cap.line.waiting() > 0 {
            // No request overtakes those that wait already.
            Err(TryAcquireError::NoPermits)
        } else {
            cap.try_share()
        };
        let share = match free {
            Ok(share) => Ok(Some(share)),
            Err(TryAcquireError::Closed) => Ok(None),
            Err(TryAcquireError::NoPermits) => match limits.fair {
                None => self.wait(CAP, limits, deadline, cap.share()).await,
                Some(rules) => {
                    let size = limits.queue_size.saturating_sub(self.waiting.count());
                    let line = LineLimits::new(rules, size, deadline);
                    // Rare, so boxed: every request's future would be larger.
                    let waited = Box::pin(self.wait_in_order(cap, line, &asker())).await;
                    waited.map_err(|why| self.queue_error(why, CAP, limits))
                }
            },
        };
        let share = share.inspect_err(|_| cap.note_refusal())?;
        Ok(Permit { _share: share })
    }

    /// Waits in the queue for what a limit gives; `None` when the limit is lifted meanwhile.
    async fn wait<T>(
        &self,
        what: &'static str,
        limits: &Limits,
        deadline: Instant,
        granted: impl Future<Output = Result<T, AcquireError>>,
    ) -> Result<Option<T>, Error> {
        let (before, _waiting) = self.waiting.enter();
        if before >= limits.queue_size {
            return Err(Error::QueueFull {
                what,
                waiting: before,
                retry_after: 1,
            });
        }
        match timeout_at(deadline, granted).await {
            Ok(granted) => Ok(granted.ok()),
            Err(_) => Err(Error::QueueTimeout {
                what,
                seconds: limits.max_wait.as_secs(),
            }),
        }
    }

    /// Waits for a share in the fair order; `None` when the cap is lifted meanwhile.
    async fn wait_in_order(
        &self,
        cap: &Arc<Cap>,
        limits: LineLimits,
        asker: &Asker,
    ) -> Result<Option<Share>, QueueError> {
        let begun = Instant::now();
        let acquire = || match cap.try_share() {
            Ok(share) => Some(Some(share)),
            Err(TryAcquireError::Closed) => Some(None),
            Err(TryAcquireError::NoPermits) => None,
        };
        let waited = cap.line.wait(asker, limits, acquire).await;
        let result = waited
            .as_ref()
            .map_or_else(|why| why.as_str(), |_| "served");
        self.metrics
            .waits
            .ended(asker.class, result, begun.elapsed());
        waited
    }

    fn queue_error(&self, why: QueueError, what: &'static str, limits: &Limits) -> Error {
        match why {
            QueueError::Full | QueueError::PushedOut => Error::QueueFull {
                what,
                waiting: self.waiting(),
                retry_after: 1,
            },
            QueueError::Timeout => Error::QueueTimeout {
                what,
                seconds: limits.max_wait.as_secs(),
            },
        }
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        let limits = self.limits.load();
        let in_line = limits.cap.as_ref().map_or(0, |cap| cap.line.waiting());
        self.waiting.count() + in_line
    }

    /// The limits in force, for the log.
    pub(crate) fn summary(&self, per_worker: Option<usize>) -> String {
        let limits = self.limits.load();
        let (cap, rate) = (limits.cap.as_ref(), limits.rate.as_ref());
        let numbers = [
            (CAP, cap.map(|cap| cap.configured())),
            (RATE, rate.map(|rate| rate.per_second())),
            ("max_requests_per_worker", per_worker),
        ];
        let set = numbers
            .into_iter()
            .filter_map(|(name, limit)| Some((name, limit?)));
        let words: Vec<_> = set.map(|(name, limit)| format!("{name} {limit}")).collect();
        if words.is_empty() {
            return "none".to_owned();
        }
        let (size, wait) = (limits.queue_size, limits.max_wait.as_secs());
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
        metrics
            .http
            .queue_limit
            .set(number(self.limits.load().queue_size));
    }

    /// Refills the bucket of the rate, while there is one; runs until dropped.
    pub(crate) async fn refill(&self) {
        if self.shared.is_some() {
            return pending().await;
        }
        let (mut ticks, mut paid) = (interval(REFILL_INTERVAL), None);
        loop {
            let rate = self.limits.load().rate.clone();
            if let Some(rate) = rate {
                ticks.tick().await;
                rate.refill(&mut paid);
            } else {
                paid = None;
                self.rate_set.notified().await;
                ticks.reset();
            }
        }
    }

    /// What is in force, for `GET /debug/limits`.
    pub(crate) fn to_json(&self) -> Value {
        let limits = self.limits.load();
        let (cap, rate) = (limits.cap.as_ref(), limits.rate.as_ref());
        json!({
            CAP: cap.map(|cap| cap.configured()),
            "concurrent_requests": cap.map(|cap| cap.in_flight()),
            RATE: rate.map(|rate| rate.per_second()),
            "queue_size": limits.queue_size,
            "queue_timeout_secs": limits.max_wait.as_secs(),
            "queue_order": if limits.fair.is_some() { "fair" } else { "fifo" },
            "queued": self.waiting(),
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use futures_util::poll;
    use routing::FairShare;

    use super::*;
    use crate::config::Options;

    fn anyone() -> Asker {
        Asker::new(FairShare::default(), None, 1)
    }

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
        let permit = join_all((0..10_000).map(|_| admission.admit(anyone))).await;
        assert!(permit.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn cap_holds_until_permit_is_dropped_and_queue_is_first_in_first_out() {
        let admission = admission(|options| options.max_concurrent_requests = 1);
        let first = admission.admit(anyone).await.unwrap();
        let (mut second, mut third) = (
            Box::pin(admission.admit(anyone)),
            Box::pin(admission.admit(anyone)),
        );
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        assert!(matches!(
            admission.admit(anyone).await,
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
        let _held = admission.admit(anyone).await.unwrap();
        let started = Instant::now();
        let refused = admission.admit(anyone).await.unwrap_err();
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        assert_eq!(refused.status().as_u16(), 408);
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_wait_frees_its_place() {
        let admission = admission(|options| options.max_concurrent_requests = 1);
        let held = admission.admit(anyone).await.unwrap();
        {
            let mut leaving = Box::pin(admission.admit(anyone));
            assert!(poll!(&mut leaving).is_pending());
            assert_eq!(admission.waiting(), 1);
        }
        assert_eq!(admission.waiting(), 0);
        drop(held);
        admission.admit(anyone).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn rate_holds_whatever_is_in_flight() {
        let admission = admission(|options| {
            options.rate_limit_tokens_per_second = Some(100);
            options.queue_size = 1000;
        });
        let started = Instant::now();
        let all = join_all((0..300).map(|_| admission.admit(anyone)));
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
    async fn lifted_limits_let_those_in_that_wait_and_new_ones_hold_for_later_requests() {
        let section = |cap, rate| {
            AdmissionSection::from(&Options {
                max_concurrent_requests: cap,
                rate_limit_tokens_per_second: rate,
                queue_size: 9,
                queue_timeout_secs: 5,
                ..Options::default()
            })
        };
        let metrics = Metrics::new(None).unwrap();
        for limited in [section(1, None), section(0, Some(1))] {
            let admission = Admission::new(&limited, &metrics);
            let _first = admission.admit(anyone).await.unwrap();
            let mut second = Box::pin(admission.admit(anyone));
            assert!(poll!(&mut second).is_pending());
            admission.set(&section(0, None));
            second.await.unwrap();
            admission.set(&section(1, None));
            let third = admission.admit(anyone).await.unwrap();
            let mut fourth = Box::pin(admission.admit(anyone));
            assert!(poll!(&mut fourth).is_pending());
            drop(third);
            fourth.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rate_that_is_set_while_running_is_refilled() {
        let admission = admission(|_| {});
        let section = AdmissionSection::from(&Options {
            rate_limit_tokens_per_second: Some(10),
            queue_size: 100,
            ..Options::default()
        });
        let started = Instant::now();
        let requests = async {
            tokio::task::yield_now().await;
            admission.set(&section);
            join_all((0..30).map(|_| admission.admit(anyone))).await
        };
        tokio::select! {
            permits = requests => assert!(permits.iter().all(Result::is_ok)),
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
            let limits = admission.limits.load();
            assert!(limits.cap.is_none() && limits.rate.is_none());
        }
    }
}
