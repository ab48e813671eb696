//! Watching one worker: waiting for it to come up, then asking how it is.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use routing::Verdict;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::model_info;
use super::{Fleet, HealthSpec, Worker};
use crate::config::{Options, seconds};
use crate::telemetry::Metrics;

/// First pause between start-up probes; it doubles up to the check interval.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a failed probe of a worker that was well.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Longest pause between probes of a worker that is away.
const LONGEST_AWAY: Duration = Duration::from_secs(2);
/// How long a worker that came up may take to tell what it is before it gets requests.
const IDENTIFY_FIRST: Duration = Duration::from_secs(1);
/// How often a worker that does not tell what it is is asked, where probes are off.
const IDENTIFY_TRIES: u32 = 3;
/// The pause of a prober that has nothing to do.
const NEVER: Duration = Duration::from_hours(24);
static NO_BODY: Bytes = Bytes::new();

/// How workers are probed.
#[derive(Clone, Debug)]
pub(crate) struct ProbeSettings {
    endpoint: String,
    interval: Duration,
    timeout: Duration,
    startup_timeout: Duration,
    startup_interval: Duration,
    /// Whether a worker is still probed once it is up.
    watch: bool,
}

impl ProbeSettings {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            endpoint: options.health_check_endpoint.clone(),
            interval: seconds(options.health_check_interval_secs),
            timeout: Duration::from_secs(options.health_check_timeout_secs),
            startup_timeout: Duration::from_secs(options.worker_startup_timeout_secs),
            startup_interval: seconds(options.worker_startup_check_interval),
            watch: !options.disable_health_check,
        }
    }
}

/// Probes one worker for as long as the gateway runs.
#[derive(Debug)]
pub(crate) struct Prober {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) settings: Arc<ProbeSettings>,
    /// The lane whose thread runs the prober.
    pub(crate) lane: usize,
}

impl Prober {
    /// Runs until the worker has left.
    pub(crate) async fn run(self) {
        self.come_up().await;
        let mut unknown = IDENTIFY_TRIES;
        let (mut passed, mut pause) = (true, self.pause(true, None));
        while !self.worker.removed.load(Relaxed) {
            let next = if self.goes_on(unknown) { pause } else { NEVER };
            // Rung when an exchange with the worker failed, or its terms have changed: then it
            // is not left to the clock.
            let _ = timeout(next, self.worker.probe_now.notified()).await;
            if self.worker.removed.load(Relaxed) || !self.goes_on(unknown) {
                continue;
            }
            let before = std::mem::replace(&mut passed, self.probe().await);
            if self.judges() {
                self.fleet.record_probe(&self.worker, passed);
            }
            pause = self.pause(passed, Some(pause).filter(|_| !before));
            // A worker that was away may have come back as another one.
            if passed && !(before && self.worker.model_info.load().is_complete()) {
                self.identify().await;
                unknown = unknown.saturating_sub(1);
            }
        }
    }

    fn goes_on(&self, unknown: u32) -> bool {
        let curious = unknown > 0 && !self.worker.model_info.load().is_complete();
        curious || self.judges()
    }

    /// Whether probes decide about the worker; where they are off, only until it is well.
    fn judges(&self) -> bool {
        let disabled = self.health().disabled;
        disabled.map_or(self.settings.watch, |disabled| !disabled)
            || Fleet::verdict(&self.worker) != Verdict::Ready
    }

    fn health(&self) -> HealthSpec {
        self.worker.config.load().spec.health
    }

    fn interval(&self) -> Duration {
        let own = self.health().interval_secs;
        own.map_or(self.settings.interval, seconds)
    }

    /// The pause before the next probe: the interval for a worker that is well; otherwise
    /// short, and longer every time, so that one that comes back need not wait.
    fn pause(&self, passed: bool, earlier: Option<Duration>) -> Duration {
        let verdict = Fleet::verdict(&self.worker);
        let pause = match (verdict, earlier) {
            // It decides soon whether one failed probe was a hiccup.
            (Verdict::Ready, _) if !passed => SECOND_LOOK,
            (Verdict::Ready | Verdict::Pending, _) => self.interval(),
            // Back, but not for long enough to be believed.
            _ if passed => FIRST_PAUSE,
            (_, None) => FIRST_PAUSE,
            (_, Some(earlier)) => (earlier * 2).min(LONGEST_AWAY),
        };
        // Spread, so that a fleet is not probed in one burst.
        pause
            .min(self.interval())
            .mul_f64(0.9 + 0.2 * fastrand::f64())
    }

    /// Waits for the first answer; after the start-up time at a slow pace, but for ever.
    async fn come_up(&self) {
        let in_time = || Instant::now().checked_add(self.settings.startup_timeout);
        let (mut give_up_at, mut failed) = (in_time(), false);
        let mut pause = FIRST_PAUSE.min(self.settings.startup_interval);
        while !self.probe().await {
            let pending = Fleet::verdict(&self.worker) == Verdict::Pending;
            if failed && pending {
                // Registered once more.
                (give_up_at, failed) = (in_time(), false);
                pause = FIRST_PAUSE.min(self.settings.startup_interval);
            }
            let late = give_up_at.is_some_and(|at| Instant::now() >= at);
            if late && pending && !failed {
                failed = true;
                self.fleet.mark_failed(&self.worker);
                self.count("failed");
                let seconds = self.settings.startup_timeout.as_secs();
                warn!(worker = %self.worker.url, seconds, "worker did not come up, probing on");
            }
            let slow = self.settings.startup_interval.max(self.interval());
            let rung = self.worker.probe_now.notified();
            let _ = timeout(if late { slow } else { pause }, rung).await;
            if self.worker.removed.load(Relaxed) {
                return;
            }
            pause = (pause * 2).min(self.settings.startup_interval);
        }
        // Requests need not wait long for a worker to tell what it is.
        let identified = timeout(IDENTIFY_FIRST, self.identify()).await;
        self.fleet.record_probe(&self.worker, true);
        self.count("success");
        if identified.is_err() {
            self.identify().await;
        }
    }

    /// What became of the worker's registration.
    fn count(&self, result: &str) {
        if self.worker.joined_at_runtime() {
            self.metrics.registered(result);
        }
    }

    /// One probe.
    async fn probe(&self) -> bool {
        let passed = self
            .ask(&self.settings.endpoint)
            .await
            .is_some_and(|(status, _)| status.is_success());
        self.metrics.health_check(passed);
        passed
    }

    async fn identify(&self) {
        let mut answers = Vec::new();
        for paths in [
            ["/server_info", "/get_server_info"],
            ["/model_info", "/get_model_info"],
        ] {
            answers.extend(self.facts(paths).await);
        }
        if answers.is_empty() {
            return;
        }
        let labels = model_info::labels(&answers);
        debug!(worker = %self.worker.url, model = model_info::model(&labels), "worker told what it is");
        self.fleet
            .set_model(&self.worker, Some(labels), &self.metrics);
    }

    /// The JSON object at the first of `paths` that is not 404.
    async fn facts(&self, paths: [&str; 2]) -> Option<Map<String, Value>> {
        for path in paths {
            match self.ask(path).await {
                Some((StatusCode::NOT_FOUND, _)) => {}
                Some((status, body)) if status.is_success() => {
                    return serde_json::from_slice(&body).ok();
                }
                _ => return None,
            }
        }
        None
    }

    async fn ask(&self, path: &str) -> Option<(StatusCode, Bytes)> {
        let worker = &self.worker;
        let asked = worker.ask(self.lane, &Method::GET, path, &NO_BODY);
        let own = self.health().timeout_secs;
        let patience = own.map_or(self.settings.timeout, seconds);
        match timeout(patience, asked).await {
            Ok(Ok(answer)) => Some((answer.status, answer.body)),
            Ok(Err(error)) => {
                debug!(worker = %worker.url, path, %error, "probe failed");
                None
            }
            Err(_) => {
                debug!(worker = %worker.url, path, "probe timed out");
                None
            }
        }
    }
}
