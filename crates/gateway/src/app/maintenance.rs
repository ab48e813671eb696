//! Periodic tasks of a running gateway.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval};
use tracing::info;

use crate::admission::Admission;
use crate::balancer::Balancer;
use crate::config::Live;
use crate::fleet::{OutlierDetector, advance_timers};

/// Pause between sweeps of idle connections.
const SWEEP: Duration = Duration::from_secs(1);
/// Pause between comparisons of workers with their peers, and between log lines about a queue.
const SLOW_TASK_INTERVAL: Duration = Duration::from_secs(10);

/// Housekeeping.
pub(super) struct Maintenance {
    pub(super) balancer: Arc<Balancer>,
    pub(super) admission: Arc<Admission>,
    pub(super) outliers: Option<OutlierDetector>,
    pub(super) live: Live,
}

/// A queue that stays.
#[derive(Clone, Copy)]
struct Wait {
    since: Instant,
    logged: Instant,
}

impl Maintenance {
    /// Runs until dropped.
    pub(super) async fn run(self) {
        let mut ticks = interval(SWEEP);
        let (mut policies_swept, mut compared) = (Instant::now(), Instant::now());
        let mut wait = None;
        loop {
            let now = ticks.tick().await;
            self.balancer.fleet.sweep_connections();
            advance_timers(&self.balancer.fleet);
            wait = self.log_waiting(wait, now);
            if now - compared >= SLOW_TASK_INTERVAL {
                if let Some(outliers) = &self.outliers {
                    outliers.detect();
                }
                compared = now;
            }
            if now - policies_swept >= self.live.in_force().eviction_interval {
                self.balancer.sweep_policies();
                policies_swept = now;
            }
        }
    }

    /// A queue that stays is logged, though not every second.
    fn log_waiting(&self, before: Option<Wait>, now: Instant) -> Option<Wait> {
        let waiting = self.admission.waiting() + self.balancer.waiting();
        if waiting == 0 {
            return None;
        }
        let (since, logged) = (now, now);
        let mut wait = before.unwrap_or(Wait { since, logged });
        let first = wait.logged == wait.since;
        if now - wait.since >= SWEEP && (first || now - wait.logged >= SLOW_TASK_INTERVAL) {
            let since_secs = (now - wait.since).as_secs();
            info!(waiting, since_secs, "requests wait in a queue");
            wait.logged = now;
        }
        Some(wait)
    }
}
