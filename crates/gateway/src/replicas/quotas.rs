//! Limits that hold across gateways: units, and slots, are taken before they are needed.
//!
//! - Shared are `rate_limit_tokens_per_second`, and `rpm_limit` and `tpm_limit` of keys; as slots
//!   `max_concurrent_requests`, `max_requests_per_worker`, and `max_parallel_requests` of keys
//!   ([`slot_shares`](super::slot_shares)).
//! - A lane uses units of its bucket, a semaphore or an atomic number, and knows nothing of this.
//! - Here, on the control thread, a round every 10 to 30 ms asks for what the buckets lack, by one
//!   script for up to 256 limits. The pause is random, so that no gateway always comes second.
//! - A limit of which nothing is used is asked about four times a second.
//! - Without the server, or when it takes half a second, this task fills the buckets by the clock:
//!   with this gateway's part, with all, or not at all, by `shared_state_on_failure`.
//! - Back again: what was filled in so is replaced by what the server grants.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use routing::quota::{Bucket, GRACE, Part, Planner, SharedLimits};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{info, warn};

use super::exchange::Leaving;
use super::link::LinkError;
use super::quota_link::{Granted, QuotaLink, QuotaServer, Round};
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
    shares: Vec<Share>,
    slots: SlotShares,
    workers: Option<WorkerSlots>,
    changes: Option<u64>,
    /// The share with which the next round begins.
    next: usize,
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

/// What this gateway holds of a limit.
#[derive(Debug)]
struct Share {
    name: Arc<str>,
    bucket: Weak<dyn Bucket>,
    planner: Planner,
}

/// A share that a round asks for, and its bucket.
struct Asked {
    share: usize,
    bucket: Arc<dyn Bucket>,
}

impl<S: QuotaServer> Quotas<S> {
    pub(crate) fn new(parts: QuotaParts, server: S) -> Self {
        Self {
            server: Arc::new(server),
            id: fastrand::u64(..),
            shares: Vec::new(),
            slots: SlotShares::default(),
            workers: parts.balancer.clone().map(WorkerSlots::new),
            parts,
            changes: None,
            next: 0,
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

    /// Whether there is no limit to share.
    fn is_idle(&mut self) -> bool {
        self.follow();
        self.shares.is_empty() && self.slots.is_empty()
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
            for share in &mut self.shares {
                if let Some(bucket) = share.bucket.upgrade() {
                    share.planner.fill(&*bucket, part, since);
                }
            }
            // At first none are used: others may have them all.
            if self.is_lost {
                self.slots.fill(part);
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
            let (asked, round) = self.round();
            let mut pause = Duration::from_millis(fastrand::u64(PAUSE_MS));
            if !round.asks.is_empty() || !round.slots.is_empty() {
                let granted = link.exchange(&round).await?;
                if self.take(asked, granted) {
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
    fn take(&mut self, asked: Vec<Asked>, granted: Granted) -> bool {
        let (gateways, now) = (granted.gateways.max(1), Instant::now());
        self.gateways = Some(gateways);
        if gateways >= self.most.0 || now - self.most.1 > GRACE {
            self.most = (gateways, now);
        }
        for (asked, grant) in asked.into_iter().zip(granted.grants) {
            let Some(share) = self.shares.get_mut(asked.share) else {
                continue;
            };
            share.planner.granted(&*asked.bucket, grant);
            let metrics = &self.parts.metrics.shared_state;
            metrics.units_taken(kind(&share.name), grant.units);
        }
        self.slots.granted(granted.slots)
    }

    /// What to ask for now, and of which shares.
    fn round(&mut self) -> (Vec<Asked>, Round) {
        let now = self.begun.elapsed();
        let (gateways, count) = (self.gateways.unwrap_or(1), self.shares.len());
        let (mut asked, mut round) = (Vec::new(), self.empty_round());
        for _ in 0..count {
            if asked.len() == MAX_ASKS {
                break;
            }
            self.next = (self.next + 1) % count;
            let Some(share) = self.shares.get_mut(self.next) else {
                break;
            };
            let Some(bucket) = share.bucket.upgrade() else {
                continue;
            };
            let Some(ask) = share.planner.ask(&*bucket, gateways, now) else {
                continue;
            };
            let name = Arc::clone(&share.name);
            let back = ask.units.min(0).unsigned_abs();
            let metrics = &self.parts.metrics.shared_state;
            metrics.units_returned(kind(&name), back);
            round.asks.push((name, bucket.limit(), ask));
            let share = self.next;
            asked.push(Asked { share, bucket });
        }
        round.slots = self.slots.ask(MAX_ASKS, now);
        (asked, round)
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
            let limits = self.shares.len() + self.slots.count();
            info!(server = %self.parts.address, limits, "limits of several gateways are kept together");
            self.show(Instant::now());
        }
    }

    /// Gives back what is held.
    async fn leave(&mut self, mut link: S::Link) {
        let mut shares = std::mem::take(&mut self.shares);
        for some in shares.chunks_mut(MAX_ASKS) {
            let mut round = self.empty_round();
            round.leaves = true;
            for share in some {
                if let Some(bucket) = share.bucket.upgrade() {
                    let ask = share.planner.leave(&*bucket);
                    round
                        .asks
                        .push((Arc::clone(&share.name), bucket.limit(), ask));
                }
            }
            if link.exchange(&round).await.is_err() {
                return;
            }
        }
        for some in self.slots.leave().chunks(MAX_ASKS) {
            let mut round = self.empty_round();
            round.leaves = true;
            round.slots = some.to_vec();
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
        self.slots.follow(&self.parts.limits);
        let before = self.shares.drain(..);
        let mut known: BTreeMap<_, _> = before
            .map(|share| (Arc::clone(&share.name), share))
            .collect();
        for (name, bucket) in self.parts.limits.list() {
            let Some(live) = bucket.upgrade() else {
                continue;
            };
            let same = known.remove(&name);
            let same = same.filter(|share| share.bucket.ptr_eq(&bucket));
            self.shares.push(same.unwrap_or_else(|| Share {
                name,
                bucket,
                planner: Planner::new(&*live),
            }));
        }
    }

    fn show_sometimes(&mut self, now: Instant) {
        if self.shown.is_none_or(|shown| now - shown >= SHOW_INTERVAL) {
            self.shares.retain(|share| share.bucket.strong_count() > 0);
            self.slots.retain_live();
            self.show(now);
        }
    }

    fn show(&mut self, now: Instant) {
        self.shown = Some(now);
        let count = self.shares.len() + self.slots.count();
        let state = match (count == 0, self.connected) {
            (true, _) => "none",
            (false, true) => "shared",
            (false, false) => "on_failure",
        };
        let rows = self.shares.iter().take(MAX_SHOWN);
        let rows: Vec<_> = rows.filter_map(row).collect();
        self.parts.status.show_limits(json!({
            "state": state,
            "on_failure": self.parts.on_failure,
            "gateways": self.gateways,
            "count": count,
            "limits": rows,
            "slots": self.slots.rows(MAX_SHOWN),
        }));
        let metrics = &self.parts.metrics.shared_state;
        metrics.show_limits(count, state == "on_failure");
        self.slots.show(&self.parts.metrics);
        let mut kinds: Vec<_> = self.shares.iter().map(|share| kind(&share.name)).collect();
        kinds.dedup();
        for kind in kinds {
            metrics.units_taken(kind, 0);
            metrics.units_returned(kind, 0);
        }
    }
}

fn row(share: &Share) -> Option<Value> {
    let bucket = share.bucket.upgrade()?;
    let limit = bucket.limit();
    Some(json!({
        "name": &*share.name,
        "units": limit.units,
        "period_secs": limit.period.as_secs(),
        "held": bucket.held().level,
        "target": share.planner.target(),
        "short": share.planner.is_short(),
    }))
}

/// What kind of limit it is, by its name.
fn kind(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}
