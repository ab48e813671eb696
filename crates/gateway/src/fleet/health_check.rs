//! The health checks of one endpoint: waiting for it to start, then probing it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use routing::{Probe, Verdict};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use super::adapters;
use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::header_overrides::{self, Overrides};
use super::model_info::{self, Report};
use super::registry::Registry;
use super::role::Role;
use super::spec::HealthSpec;
use super::transitions;
use crate::config::{Live, PdMetadata, seconds};
use crate::telemetry::{LogLimit, Metrics};
use crate::upstream::{ControlClient, UpstreamError};

/// First pause between start-up probes; it doubles up to the check interval.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a failed probe of a ready worker.
const RECHECK_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between probes of a worker that is not ready.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a worker that has started may take to report its model and its role before it gets
/// requests: an engine in a pair refuses those that are for a regular one.
const IDENTIFY_FIRST: Duration = Duration::from_secs(3);
/// Attempts to read a worker's model info, where probes are off.
const IDENTIFY_ATTEMPTS: u32 = 3;
/// Shortest time between looks at a worker's list of models.
const REFRESH_CARDS: Duration = Duration::from_secs(10);
/// The pause of a prober that has nothing to do.
const NEVER: Duration = Duration::from_hours(24);
/// Spread of pauses, so that a fleet is not probed in one burst.
const SPREAD: f64 = 0.2;

/// Probes one endpoint until it is removed.
#[derive(Debug)]
pub(super) struct Prober {
    pub(super) fleet: Arc<Fleet>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) live: Live,
    pub(super) client: ControlClient,
    pub(super) registry: Arc<Registry>,
    /// Lines about a worker that is the gateway itself.
    pub(super) loops: LogLimit,
    /// Lines about a worker that does not trust the gateway, or the other way round.
    pub(super) distrust: LogLimit,
    /// The worker has `/ready`, which says whether its engine is paused.
    pub(super) has_ready: AtomicBool,
    /// The line about workers whose replies name no cached tokens has been written.
    pub(super) hints: Arc<AtomicBool>,
}

/// The last probe, and the one before.
#[derive(Clone, Copy, Debug)]
enum History {
    Passed,
    /// The probe before it had passed.
    FailedOnce,
    /// The pause between the last two probes, both of which failed.
    FailedAgain(Duration),
}

impl Prober {
    /// Runs until the endpoint has been removed.
    pub(super) async fn run(self) {
        self.start_up().await;
        let mut attempts = IDENTIFY_ATTEMPTS;
        let (mut last, mut pause) = (Probe::Passed, self.pause(History::Passed));
        let mut refresh_at = Instant::now() + REFRESH_CARDS;
        while !self.endpoint.is_removed() {
            let next = if self.has_work(attempts) {
                pause
            } else {
                NEVER
            };
            // Notified when an exchange with the worker failed, or its settings have changed.
            let _ = timeout(next, self.endpoint.probe_now.notified()).await;
            if self.endpoint.is_removed() || !self.has_work(attempts) {
                continue;
            }
            let Some(probe) = self.probe().await else {
                pause = RECHECK_PAUSE.min(self.interval());
                continue;
            };
            let before = std::mem::replace(&mut last, probe);
            if self.decides() {
                transitions::record_probe(&self.fleet, &self.endpoint, last);
            }
            pause = self.pause(match (last, before) {
                (Probe::Passed, _) => History::Passed,
                (_, Probe::Passed) => History::FailedOnce,
                (_, _) => History::FailedAgain(pause),
            });
            // A worker that was not ready may have come back with another model.
            let known = before == Probe::Passed && self.endpoint.model_info.load().is_complete();
            if last == Probe::Passed && !known {
                self.identify().await;
                attempts = attempts.saturating_sub(1);
            } else if last == Probe::Passed && Instant::now() >= refresh_at {
                self.refresh().await;
                refresh_at = Instant::now() + REFRESH_CARDS;
            }
        }
    }

    fn has_work(&self, attempts: u32) -> bool {
        let unidentified = attempts > 0 && !self.endpoint.model_info.load().is_complete();
        unidentified || self.decides()
    }

    /// Whether probes decide about the worker; where they are off, only until it is ready.
    fn decides(&self) -> bool {
        let disabled = self.health().disabled;
        disabled.map_or(self.live.health().enabled, |disabled| !disabled)
            || self.endpoint.verdict() != Verdict::Ready
    }

    fn health(&self) -> HealthSpec {
        self.endpoint.config.load().spec.health
    }

    fn interval(&self) -> Duration {
        let own = self.health().interval_secs;
        own.map_or(self.live.health().interval, seconds)
    }

    /// The pause before the next probe: the interval for a ready worker; otherwise short, and
    /// longer every time.
    fn pause(&self, history: History) -> Duration {
        let pause = match (self.endpoint.verdict(), history) {
            // It decides soon whether one failed probe was a hiccup.
            (Verdict::Ready, History::FailedOnce | History::FailedAgain(_)) => RECHECK_PAUSE,
            (Verdict::Ready | Verdict::Pending, _) => self.interval(),
            // It passes again, but not often enough yet to count as ready.
            (_, History::Passed | History::FailedOnce) => FIRST_PAUSE,
            (_, History::FailedAgain(pause)) => (pause * 2).min(LONGEST_PAUSE),
        };
        let spread = 1.0 + SPREAD * (fastrand::f64() - 0.5);
        pause.min(self.interval()).mul_f64(spread)
    }

    /// Waits for the first answer; after the start-up time at a slow pace, but for ever.
    async fn start_up(&self) {
        let first_pause = FIRST_PAUSE.min(self.live.health().startup_interval);
        let (mut since, mut failed, mut pause) = (Instant::now(), false, first_pause);
        while self.probe().await != Some(Probe::Passed) {
            let pending = self.endpoint.verdict() == Verdict::Pending;
            if failed && pending {
                // Registered once more.
                (since, failed, pause) = (Instant::now(), false, first_pause);
            }
            // Read every time: they may change meanwhile.
            let health = self.live.health();
            let late = since.elapsed() >= health.startup_timeout;
            if late && pending && !failed {
                failed = true;
                transitions::mark_failed(&self.fleet, &self.endpoint);
                self.count("failed");
                let seconds = health.startup_timeout.as_secs();
                warn!(worker = %self.endpoint.url, seconds, "worker did not become ready, probing on");
            }
            let slow = health.startup_interval.max(self.interval());
            let notified = self.endpoint.probe_now.notified();
            let _ = timeout(if late { slow } else { pause }, notified).await;
            if self.endpoint.is_removed() {
                return;
            }
            pause = (pause * 2).min(health.startup_interval);
        }
        // Requests need not wait long for a worker to report its model.
        let identified = timeout(IDENTIFY_FIRST, self.identify()).await;
        transitions::record_probe(&self.fleet, &self.endpoint, Probe::Passed);
        self.count("success");
        if identified.is_err() {
            self.identify().await;
        }
    }

    /// How the registration of the worker ended.
    fn count(&self, result: &str) {
        let workers = self.fleet.workers_of(&self.endpoint);
        let joined = workers.iter().find(|worker| worker.joined_at_runtime());
        if let Some(worker) = joined {
            let source = self.registry.source_of(worker);
            self.metrics.discovery.registered(source.name(), result);
        }
    }

    /// One probe; `None` when the gateway's own machine stood in its way, which says nothing
    /// about the worker.
    async fn probe(&self) -> Option<Probe> {
        let probe = match self.ask_health().await {
            Ok((status, _)) if status.is_success() => Probe::Passed,
            Ok((StatusCode::LOOP_DETECTED, _)) => {
                if self.loops.pass().is_some() {
                    error!(worker = %self.endpoint.url, "this worker is the gateway itself, or leads back to it; remove it");
                }
                Probe::Failed
            }
            Ok(_) => Probe::Failed,
            Err(error) => {
                if let Some(lacking) = error.local_fault() {
                    self.metrics.local_fault(lacking, &error);
                    return None;
                }
                if error.is_refusal() {
                    Probe::Refused
                } else {
                    Probe::Failed
                }
            }
        };
        if probe != Probe::Passed {
            // It may come back as another engine.
            self.endpoint.header_overrides.set(Overrides::Unknown);
        }
        let worker_type = self.endpoint.model_info.load().role.worker_type();
        let passed = probe == Probe::Passed;
        let result = if passed { "success" } else { "failure" };
        self.metrics.health_check(worker_type, result);
        Some(probe)
    }

    /// Asks whether the worker serves. A paused engine serves, but a check that generates
    /// something gets no answer from it.
    async fn ask_health(&self) -> Result<(StatusCode, Bytes), UpstreamError> {
        let workers = self.fleet.workers_of(&self.endpoint);
        let was_paused = workers.iter().any(|worker| worker.availability().paused);
        if !self.has_ready.load(Relaxed) {
            let health = self.live.health();
            let path = if was_paused {
                "/v1/models"
            } else {
                &health.path
            };
            return self.ask(path).await;
        }
        match self.ask("/ready").await? {
            (StatusCode::SERVICE_UNAVAILABLE, _) => {
                // SageMaker's check passes while the engine is paused, and only then.
                let alive = self.ask("/ping").await?;
                if alive.0.is_success() && !was_paused {
                    transitions::mark_paused(&self.fleet, &self.endpoint);
                }
                Ok(alive)
            }
            (status, _) => {
                self.has_ready.store(status.is_success(), Relaxed);
                if was_paused {
                    transitions::mark_running(&self.fleet, &self.endpoint);
                }
                self.ask(&self.live.health().path).await
            }
        }
    }

    async fn identify(&self) {
        // This one asks no scheduler, so it has its answer at once also from a busy engine.
        let model_info = self.first_of(&["/model_info", "/get_model_info"]).await;
        if let Some(role) = model_info.as_ref().and_then(model_info::role_in) {
            self.learn_role(role);
        }
        let server_info = self.first_of(&["/server_info", "/get_server_info"]).await;
        let http2 = server_info.as_ref().and_then(|it| it.get("enable_http2"));
        self.endpoint
            .client
            .announce_http2(http2 == Some(&Value::Bool(true)));
        let answers: Vec<_> = server_info.into_iter().chain(model_info).collect();
        let cards = self.first_of(&["/v1/models"]).await;
        if answers.is_empty() && cards.is_none() {
            return;
        }
        let report = Report::new(model_info::labels(&answers), cards.as_ref());
        let model = report.model();
        debug!(worker = %self.endpoint.url, model, "worker reports its model");
        transitions::set_model(&self.fleet, &self.endpoint, Some(report), &self.metrics);
        self.hint();
        self.registry.follow_ranks(&self.endpoint);
        let ready = self.ask("/ready").await.map(|(status, _)| status);
        let has_ready = matches!(ready, Ok(StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE));
        self.has_ready.store(has_ready, Relaxed);
        self.learn_overrides().await;
    }

    /// Says once what keeps routing from checking its beliefs about caches.
    fn hint(&self) {
        let hides = self.endpoint.model_info.load().hides_cached_tokens();
        if hides && !self.hints.swap(true, Relaxed) {
            info!(
                worker = %self.endpoint.url,
                "replies of workers name no cached tokens, so cache_aware cannot check what it \
                 believes of their caches; start the engines with --enable-cache-report"
            );
        }
    }

    /// Finds out whether an engine in pairs obeys headers in place of fields. Those that are found to
    /// are not asked again while they stay: an engine logs every request that it refuses.
    async fn learn_overrides(&self) {
        let (endpoint, wanted) = (&self.endpoint, self.live.health().pd_metadata);
        let role = endpoint.model_info.load().role;
        if role == Role::Regular || wanted == PdMetadata::Body {
            return;
        }
        let to_generate = endpoint.question(&Method::POST, "/generate");
        let found = header_overrides::ask(to_generate, &self.client, self.limit()).await;
        endpoint.header_overrides.set(found);
        debug!(worker = %endpoint.url, ?found, "x-override-* headers");
        if wanted == PdMetadata::Headers && found == Overrides::Ignored {
            warn!(
                worker = %endpoint.url,
                "worker seems to ignore x-override-* headers, which --pd-metadata headers needs; \
                 start its engine with SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES=1"
            );
        }
    }

    /// Asks again for what changes while an engine runs.
    async fn refresh(&self) {
        self.read_role().await;
        if self.endpoint.header_overrides.get() == Overrides::Unknown {
            self.learn_overrides().await;
        }
        adapters::read_adapters(&self.fleet, &self.endpoint, &self.client, &self.metrics).await;
    }

    /// Learns the role of a worker of which nothing else is known yet.
    fn learn_role(&self, role: Role) {
        let before = self.endpoint.model_info.load_full();
        if before.report == Report::default() && before.role != role {
            let report = Report::default().in_role(role);
            transitions::set_model(&self.fleet, &self.endpoint, Some(report), &self.metrics);
        }
    }

    /// Reads the role of an engine in pairs again: it can be switched while it runs.
    async fn read_role(&self) {
        let before = self.endpoint.model_info.load_full();
        if before.report.role().is_none() {
            return;
        }
        let answer = self.first_of(&["/model_info", "/get_model_info"]).await;
        let role = answer.and_then(|answer| model_info::role_in(&answer));
        if let Some(role) = role.filter(|role| *role != before.role) {
            transitions::set_role(&self.fleet, &self.endpoint, role, &self.metrics);
        }
    }

    /// The JSON object at the first of `paths` that is not 404.
    async fn first_of(&self, paths: &[&str]) -> Option<Map<String, Value>> {
        for path in paths {
            match self.ask(path).await {
                Ok((StatusCode::NOT_FOUND, _)) => {}
                Ok((status, body)) if status.is_success() => {
                    return serde_json::from_slice(&body).ok();
                }
                _ => return None,
            }
        }
        None
    }

    /// Longest time for an answer.
    fn limit(&self) -> Duration {
        let own = self.health().timeout_secs;
        own.map_or_else(|| self.live.get().probe_after, seconds)
    }

    async fn ask(&self, path: &str) -> Result<(StatusCode, Bytes), UpstreamError> {
        let endpoint = &self.endpoint;
        let asked = self.client.send(endpoint.question(&Method::GET, path));
        match timeout(self.limit(), asked).await {
            Ok(Ok(answer)) => Ok((answer.status, answer.body)),
            Ok(Err(error @ UpstreamError::Tls(_))) => {
                if let Some(left_out) = self.distrust.pass() {
                    warn!(worker = %endpoint.url, %error, left_out, "cannot speak TLS with a worker");
                }
                Err(error)
            }
            Ok(Err(error)) => {
                debug!(worker = %endpoint.url, path, %error, "probe failed");
                Err(error)
            }
            Err(_) => {
                debug!(worker = %endpoint.url, path, "probe timed out");
                Err(UpstreamError::Truncated("no answer in time".to_owned()))
            }
        }
    }
}
