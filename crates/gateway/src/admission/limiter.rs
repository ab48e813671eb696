//! Limits on inference requests: how many at a time, how many per second, and which wait.

use std::future::pending;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use routing::FairRules;
use routing::quota::{Bucket, QueueRoom, QueueUse, SharedLimits, SharedQueue};
use serde_json::{Value, json};
use tokio::sync::{AcquireError, Notify, TryAcquireError};
use tokio::time::{Instant, interval, timeout_at};

use super::arrival_line::ArrivalLine;
use super::asker::Asker;
use super::cap::{Cap, Share};
use super::fair_line::LineLimits;
use super::queue_bound::QueueBound;
use super::queue_error::QueueError;
use super::rate::Rate;
use crate::config::AdmissionSection;
use crate::error::Error;
use crate::telemetry::{AdmissionMetrics, Metrics};

/// Pause between refills of a rate's bucket.
const REFILL_INTERVAL: Duration = Duration::from_millis(10);

/// Options, and the names under which gateways share them.
const RATE: &str = "rate_limit_tokens_per_second";
const CAP: &str = "max_concurrent_requests";
/// The name under which they share the queue.
const QUEUE: &str = "admission";

/// The limits in force. Without any, a request passes without touching anything shared.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: ArcSwap<Limits>,
    /// How many may wait.
    bound: QueueBound,
    /// Those that wait in the order of arrival.
    arrivals: ArrivalLine,
    /// Notified when there is a rate.
    rate_set: Notify,
    /// Where other gateways share the rate, the cap and the queue.
    shared: Option<Arc<SharedLimits>>,
    metrics: AdmissionMetrics,
}

#[derive(Debug)]
struct Limits {
    cap: Option<Arc<Cap>>,
    rate: Option<Arc<Rate>>,
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
                max_wait: options.queue_timeout,
                fair: options.fair,
            }),
            bound: QueueBound::new(options.queue_size),
            arrivals: ArrivalLine::default(),
            rate_set: Notify::new(),
            shared: None,
            metrics: metrics.admission(),
        }
    }

    /// Shares rate, cap and queue with other gateways, if with any: what this one has of them is set
    /// from outside.
    pub(crate) fn sharing(mut self, shared: Option<Arc<SharedLimits>>) -> Arc<Self> {
        self.shared = shared;
        let limits = self.limits.load_full();
        limits.rate.iter().for_each(|rate| self.share(rate));
        limits.cap.iter().for_each(|cap| self.share_cap(cap));
        let admission = Arc::new(self);
        let shared = admission.shared.iter();
        shared.for_each(|it| it.add_queue(QUEUE, &admission));
        admission
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
        self.bound.set_size(options.queue_size);
        self.limits.store(Arc::new(Limits {
            cap,
            rate,
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
            Box::pin(self.wait(RATE, limits, deadline, rate.take())).await?;
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
                // Waits are rare, so boxed: every request's future would be larger.
                None => Box::pin(self.wait(CAP, limits, deadline, cap.share())).await,
                Some(rules) => {
                    let size = self.bound.here().saturating_sub(self.arrivals.waiting());
                    let line = LineLimits::new(rules, size, deadline);
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
        let in_order = limits.cap.as_ref().map_or(0, |cap| cap.line.waiting());
        let place = self.arrivals.enter(in_order, self.bound.here());
        let waited = match &place {
            None => Err(QueueError::Full),
            Some(place) => match place.unless_pushed_out(timeout_at(deadline, granted)).await {
                None => Err(QueueError::PushedOut),
                Some(Err(_)) => Err(QueueError::Timeout),
                Some(Ok(granted)) => Ok(granted.ok()),
            },
        };
        waited.map_err(|why| self.queue_error(why, what, limits))
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
            QueueError::Full | QueueError::PushedOut => {
                self.bound.note_refusal();
                Error::QueueFull {
                    what,
                    waiting: self.waiting().saturating_add(self.bound.elsewhere()),
                    retry_after: 1,
                }
            }
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
        self.arrivals.waiting() + in_line
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
        let (size, wait) = (self.bound.size(), limits.max_wait.as_secs());
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
        metrics.http.queue_limit.set(number(self.bound.size()));
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
            "queue_size": self.bound.size(),
            "queue_size_here": self.bound.here(),
            "queue_timeout_secs": limits.max_wait.as_secs(),
            "queue_order": if limits.fair.is_some() { "fair" } else { "fifo" },
            "queued": self.waiting(),
        })
    }
}

/// Where several gateways bound the queue together.
impl SharedQueue for Admission {
    fn total(&self) -> u64 {
        let limits = self.limits.load();
        self.bound
            .total(limits.cap.is_some() || limits.rate.is_some())
    }

    fn usage(&self) -> QueueUse {
        self.bound.usage(self.waiting())
    }

    fn set_room(&self, room: QueueRoom) {
        self.bound.set_room(room);
    }

    fn shrink(&self, most: u64) -> u64 {
        let limits = self.limits.load();
        let excess = || self.waiting().saturating_sub(most as usize);
        let cap = limits.cap.as_ref();
        let in_order = cap.map_or(0, |cap| cap.line.push_out(excess()));
        (in_order + self.arrivals.push_out(excess())) as u64
    }
}
