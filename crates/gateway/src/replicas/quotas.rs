//! Limits that hold across gateways: units, and slots, are taken before they are needed.
//!
//! - Shared are `rate_limit_tokens_per_second`, and `rpm_limit` and `tpm_limit` of keys; as slots
//!   `max_concurrent_requests`, `max_requests_per_worker`, and `max_parallel_requests` of keys
//!   ([`slot_shares`](super::slot_shares)).
//! - `queue_size` bounds what waits at all gateways together ([`queue_shares`](super::queue_shares)).
//! - A lane uses units of its bucket, a semaphore or an atomic number, and knows nothing of this.
//! - Here, on the control thread, a round every 10 to 30 ms asks for what the buckets lack, by one
//!   script for up to 256 limits. The pause is random, so that no gateway always comes second.
//! - A limit of which nothing is used is asked about four times a second.
//! - Without the server, or when it takes half a second, this task fills the buckets by the clock:
//!   with this gateway's part, with all, or not at all, by `shared_state_on_failure`.
//! - Back again: what was filled in so is replaced by what the server grants.

use std::sync::Arc;
use std::time::Duration;

use routing::quota::{GRACE, Part, SharedLimits};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{info, warn};

use super::exchange::Leaving;
use super::link::LinkError;
use super::queue_shares::QueueShares;
use super::quota_link::{Granted, QuotaLink, QuotaServer, Round};
use super::rate_shares::RateShares;
use super::slot_shares::SlotShares;
use super::status::ReplicaStatus;
use super::worker_slots::WorkerSlots;
use crate::balancer::Balancer;
use crate::config::SharedStateOnFailure;
use crate::telemetry::Metrics;

/// Pause between two rounds, milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 10..30;
/// The same after slots were given up, for which another gateway may wait.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
/// Limits of one round.
const MAX_ASKS: usize = 256;
/// Pause between two fillings while there is no server.
const FILL_INTERVAL: Duration = Duration::from_millis(20);
/// Pause between two attempts to reach the server: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause between two updates of what is shown.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);
/// Limits that are shown.
const MAX_SHOWN: usize = 100;
/// Time to give back what is held when the gateway stops.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What the task works with.
#[derive(Debug)]
pub(crate) struct QuotaParts {
    pub(crate) limits: Arc<SharedLimits>,
    /// Whose workers have limits; `None` where these are not shared.
    pub(crate) balancer: Option<Arc<Balancer>>,
    pub(crate) on_failure: SharedStateOnFailure,
    pub(crate) status: Arc<ReplicaStatus>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where the server is, without credentials.
    pub(crate) address: String,
}

/// The running task.
#[derive(Debug)]
pub(crate) struct Quotas<S> {
    parts: QuotaParts,
    server: Arc<S>,
    id: u64,
    rates: RateShares,
    slots: SlotShares,
    queues: QueueShares,
    workers: Option<WorkerSlots>,
    changes: Option<u64>,
    /// Gateways, when they were last known.
    gateways: Option<u64>,
    /// The most gateways of late, and when they were.
    most: (u64, Instant),
    connected: bool,
    /// The server could not be reached the last time.
    is_lost: bool,
    pause: Duration,
    begun: Instant,
    shown: Option<Instant>,
}

impl<S: QuotaServer> Quotas<S> {
    pub(crate) fn new(parts: QuotaParts, server: S) -> Self {
        Self {
            server: Arc::new(server),
            id: fastrand::u64(..),
            rates: RateShares::default(),
            slots: SlotShares::default(),
            queues: QueueShares::default(),
            workers: parts.balancer.clone().map(WorkerSlots::new),
            parts,
            changes: None,
            gateways: None,
            most: (1, Instant::now()),
            connected: false,
            is_lost: false,
            pause: FIRST_PAUSE,
            begun: Instant::now(),
            shown: None,
        }
    }

    /// Runs until it is ended.
    pub(crate) fn spawn(self) -> Leaving {
        Leaving::spawn(|left| self.run(left))
    }

    async fn run(mut self, mut left: oneshot::Receiver<()>) {
        let mut lost = None;
        loop {
            let server = Arc::clone(&self.server);
            let link = tokio::select! {
                link = server.connect(), if !self.is_idle() => link,
                () = self.fill(None) => continue,
                _ = &mut left => return,
            };
            let error = match link {
                Ok(link) => match self.rounds(link, &mut left).await {
                    Ok(()) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if lost.as_ref() != Some(&error) || self.connected {
                let (server, on_failure) = (&self.parts.address, self.parts.on_failure);
                warn!(%server, %error, ?on_failure, "limits of several gateways cannot be kept together");
                lost = Some(error);
            }
            (self.connected, self.is_lost) = (false, true);
            self.show(Instant::now());
            tokio::select! {
                () = self.fill(Some(self.pause)) => {}
                _ = &mut left => return,
            }
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
    }

    /// Limits that are shared.
    fn count(&self) -> usize {
        self.rates.count() + self.slots.count() + self.queues.count()
    }

    /// Whether there is no limit to share.
    fn is_idle(&mut self) -> bool {
        self.follow();
        self.count() == 0
    }

    /// Fills buckets by the clock: for so long, or while there are any to fill.
    async fn fill(&mut self, time: Option<Duration>) {
        let begun = Instant::now();
        let mut ticks = interval(FILL_INTERVAL);
        let was_idle = self.is_idle();
        loop {
            let now = ticks.tick().await;
            if time.is_some_and(|time| now - begun >= time) || self.is_idle() != was_idle {
                return;
            }
            let (since, part) = (now - self.begun, self.part());
            self.rates.fill(part, since);
            // At first none are used: others may have them all.
            if self.is_lost {
                self.slots.fill(part);
                self.queues.fill(part);
            }
            self.show_sometimes(now);
        }
    }

    /// What is this gateway's own while there is no server.
    fn part(&self) -> Part {
        match self.parts.on_failure {
            SharedStateOnFailure::Local => Part::OneOf(self.gateways.unwrap_or(1)),
            SharedStateOnFailure::Open => Part::OneOf(1),
            SharedStateOnFailure::Closed => Part::None,
        }
    }

    /// Asks for what is lacking until this gateway leaves.
    ///
    /// # Errors
    /// When the link is lost.
    async fn rounds(
        &mut self,
        mut link: S::Link,
        left: &mut oneshot::Receiver<()>,
    ) -> Result<(), LinkError> {
        loop {
            self.follow();
            let round = self.round();
            let mut pause = Duration::from_millis(fastrand::u64(PAUSE_MS));
            if !round.is_empty() {
                let granted = link.exchange(&round).await?;
                if self.take(granted) {
                    pause = SHORT_PAUSE;
                }
                self.is_reached();
            }
            self.show_sometimes(Instant::now());
            tokio::select! {
                biased;
                _ = &mut *left => {
                    let _ = timeout(LEAVE_TIMEOUT, self.leave(link)).await;
                    return Ok(());
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// Puts in force what was got. True if slots are given up.
    fn take(&mut self, granted: Granted) -> bool {
        let (gateways, now) = (granted.gateways.max(1), Instant::now());
        self.gateways = Some(gateways);
        if gateways >= self.most.0 || now - self.most.1 > GRACE {
            self.most = (gateways, now);
        }
        let metrics = &self.parts.metrics;
        self.rates.granted(granted.grants, metrics);
        self.queues
            .heard(granted.queues, self.begun.elapsed(), metrics);
        self.slots.granted(granted.slots)
    }

    /// What to ask for now.
    fn round(&mut self) -> Round {
        let now = self.begun.elapsed();
        let (gateways, metrics) = (self.gateways.unwrap_or(1), &self.parts.metrics);
        Round {
            asks: self.rates.ask(MAX_ASKS, gateways, now, metrics),
            slots: self.slots.ask(MAX_ASKS, now),
            queues: self.queues.ask(MAX_ASKS, now),
            ..self.empty_round()
        }
    }

    fn empty_round(&self) -> Round {
        Round {
            gateway: self.id,
            known: self.most.0,
            ..Round::default()
        }
    }

    fn is_reached(&mut self) {
        self.pause = FIRST_PAUSE;
        if !self.connected {
            (self.connected, self.is_lost) = (true, false);
            let limits = self.count();
            info!(server = %self.parts.address, limits, "limits of several gateways are kept together");
            self.show(Instant::now());
        }
    }

    /// Gives back what is held.
    async fn leave(&mut self, mut link: S::Link) {
        let leaving = Round {
            leaves: true,
            ..self.empty_round()
        };
        let (rates, slots, queues) = (self.rates.leave(), self.slots.leave(), self.queues.leave());
        let of_rates = rates.chunks(MAX_ASKS).map(|asks| Round {
            asks: asks.to_vec(),
            ..leaving.clone()
        });
        let of_slots = slots.chunks(MAX_ASKS).map(|slots| Round {
            slots: slots.to_vec(),
            ..leaving.clone()
        });
        let of_queues = queues.chunks(MAX_ASKS).map(|queues| Round {
            queues: queues.to_vec(),
            ..leaving.clone()
        });
        for round in of_rates.chain(of_slots).chain(of_queues) {
            if link.exchange(&round).await.is_err() {
                return;
            }
        }
    }

    /// Takes note of limits that have come or gone.
    fn follow(&mut self) {
        if let Some(workers) = &mut self.workers {
            workers.follow(&self.parts.limits);
        }
        let changes = self.parts.limits.changes();
        if self.changes == Some(changes) {
            return;
        }
        self.changes = Some(changes);
        self.rates.follow(&self.parts.limits);
        self.slots.follow(&self.parts.limits);
        self.queues.follow(&self.parts.limits);
    }

    fn show_sometimes(&mut self, now: Instant) {
        if self.shown.is_none_or(|shown| now - shown >= SHOW_INTERVAL) {
            self.rates.retain_live();
            self.slots.retain_live();
            self.queues.retain_live();
            self.show(now);
        }
    }

    fn show(&mut self, now: Instant) {
        self.shown = Some(now);
        let count = self.count();
        let state = match (count == 0, self.connected) {
            (true, _) => "none",
            (false, true) => "shared",
            (false, false) => "on_failure",
        };
        self.parts.status.show_limits(json!({
            "state": state,
            "on_failure": self.parts.on_failure,
            "gateways": self.gateways,
            "count": count,
            "limits": self.rates.rows(MAX_SHOWN),
            "slots": self.slots.rows(MAX_SHOWN),
            "queues": self.queues.rows(MAX_SHOWN),
        }));
        let metrics = &self.parts.metrics.shared_state;
        metrics.show_limits(count, state == "on_failure");
        self.rates.show(&self.parts.metrics);
        self.slots.show(&self.parts.metrics);
        self.queues.show(&self.parts.metrics);
    }
}
