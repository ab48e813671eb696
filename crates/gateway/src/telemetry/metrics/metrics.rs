//! The `smg_*` metrics. Handles are resolved when routes and workers are made, not per request.

use std::fmt::Display;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, Registry, TextEncoder};
use routing::PolicyKind;
use tracing::warn;

use super::ages::RequestAges;
use super::discovery::DiscoveryMetrics;
use super::families::{Http, Keys, Resilience, Router, Worker};
use super::handles::{AdmissionMetrics, CacheMetrics, KeyMetrics, RouteMetrics, WorkerMetrics};
use super::labels::{Backend, HTTP, WorkerType};
use super::model::{ModelMetrics, Models, UNKNOWN_MODEL};
use super::model_families::ModelFamilies;
use super::policy::{BranchMetrics, Policies};
use super::registry::Maker;
use super::replicas::ReplicaMetrics;
use super::shared_state::SharedStateMetrics;
use super::waits::WaitMetrics;
use super::zones::ZoneMetrics;
use crate::error::Error;
use crate::recorder::RecordCounters;
use crate::telemetry::log_limit::LogLimit;
use crate::telemetry::logging::dropped_lines;
use crate::telemetry::otel::TraceCounters;
use crate::telemetry::request_lines::RequestLines;

/// Bucket bounds of duration histograms, seconds, when no others are asked for.
const DURATION_BUCKETS: [f64; 20] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 45.0, 60.0,
    90.0, 120.0, 180.0, 240.0,
];

/// Every metric of one gateway. Not global: several gateways may live in a process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// About clients.
    pub(crate) http: Http,
    router: Router,
    /// About workers.
    pub(crate) worker: Worker,
    /// About where workers come from.
    pub(crate) discovery: DiscoveryMetrics,
    /// About other gateways.
    pub(crate) replicas: ReplicaMetrics,
    pub(crate) shared_state: SharedStateMetrics,
    /// About failures.
    pub(crate) resilience: Resilience,
    policies: Policies,
    pub(crate) zones: ZoneMetrics,
    /// About the fair order.
    pub(crate) waits: WaitMetrics,
    keys: Keys,
    /// By model.
    pub(super) models: Arc<Models>,
    ages: Arc<RequestAges>,
    local_fault_lines: LogLimit,
    dropped_lines: IntCounterVec,
    traces: IntCounterVec,
    records: IntCounterVec,
    pub(crate) lines: Arc<RequestLines>,
}

impl Metrics {
    /// All metrics, with `buckets` (seconds) for durations.
    pub(crate) fn new(buckets: Option<&[f64]>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let maker = Maker {
            registry: &registry,
            buckets: buckets.unwrap_or(&DURATION_BUCKETS),
        };
        let (http, router) = (Http::new(&maker)?, Router::new(&maker)?);
        let (worker, resilience) = (Worker::new(&maker)?, Resilience::new(&maker)?);
        let models = Models::new(ModelFamilies::new(&maker, &worker.errors)?);
        let (policies, zones) = (Policies::new(&maker)?, ZoneMetrics::new(&maker)?);
        let waits = WaitMetrics::new(&maker)?;
        let dropped_lines = maker.counter(
            "smg_log_dropped_lines",
            "log lines that were not written, for their writer fell behind or failed",
            &["log"],
        )?;
        let traces = maker.counter(
            "smg_traces_total",
            "traced requests, by what became of their spans",
            &["result"],
        )?;
        let records = maker.counter(
            "smg_recorded_requests_total",
            "requests that have ended, by what became of their lines in the recording",
            &["result"],
        )?;
        let (keys, discovery) = (Keys::new(&maker)?, DiscoveryMetrics::new(&maker)?);
        let replicas = ReplicaMetrics::new(&maker)?;
        let shared_state = SharedStateMetrics::new(&maker)?;
        Ok(Self {
            registry,
            http,
            models: Arc::new(models),
            router,
            worker,
            discovery,
            replicas,
            shared_state,
            resilience,
            policies,
            zones,
            waits,
            keys,
            ages: Arc::default(),
            local_fault_lines: LogLimit::default(),
            dropped_lines,
            traces,
            records,
            lines: Arc::default(),
        })
    }

    /// The same, with what writes of requests; before any route is made.
    pub(crate) fn with_lines(mut self, lines: RequestLines) -> Self {
        self.lines = Arc::new(lines);
        self
    }

    /// The counts of what becomes of requests where they are recorded.
    pub(crate) fn record_counters(&self) -> RecordCounters {
        let result = |result| self.records.with_label_values(&[result]);
        RecordCounters {
            written: result("written"),
            sampled_out: result("sampled_out"),
            queue_full: result("queue_full"),
            not_written: result("not_written"),
        }
    }

    /// The counts of what becomes of traces.
    pub(crate) fn trace_counters(&self) -> TraceCounters {
        let result = |result| self.traces.with_label_values(&[result]);
        TraceCounters {
            sent: result("sent"),
            queue_full: result("queue_full"),
            not_sent: result("not_sent"),
        }
    }

    /// The count of lines that one of the logs has lost.
    pub(crate) fn dropped_lines(&self, log: &str) -> IntCounter {
        self.dropped_lines.with_label_values(&[log])
    }

    /// Everything in the Prometheus text format 0.0.4.
    pub(crate) fn render(&self) -> prometheus::Result<String> {
        for (part, lost) in dropped_lines() {
            let counted = self.dropped_lines(part);
            counted.inc_by(lost.saturating_sub(counted.get()));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// The handles of one route.
    pub(crate) fn route(&self, method: &str, path: &'static str) -> RouteMetrics {
        RouteMetrics {
            method: method.to_owned(),
            path,
            lines: Arc::clone(&self.lines),
            requests: self.http.requests.with_label_values(&[method, path]),
            duration: self.http.duration.with_label_values(&[method, path]),
            ok: self.http.responses.with_label_values(&[path, "200", ""]),
            responses: self.http.responses.clone(),
            active: self.http.active.clone(),
            ages: Arc::clone(&self.ages),
        }
    }

    /// The handles of one model.
    pub(crate) fn model(&self, model: &str) -> Arc<ModelMetrics> {
        self.models.handles(model)
    }

    /// The handles of all policies' branches; `in_force` is the policy at work.
    pub(crate) fn branches(&self, in_force: PolicyKind) -> BranchMetrics {
        self.policies.handles(in_force)
    }

    /// How many routing keys are remembered, where any policy remembers some.
    pub(crate) fn sticky_keys(&self, keys: Option<usize>) {
        self.policies.sticky_keys(keys);
    }

    /// Bytes of the indexes of prompts, where a policy has one.
    pub(crate) fn index_bytes(&self, bytes: Option<usize>) {
        self.policies.index_bytes(bytes);
    }

    /// Sets the gauges of requests in progress by age.
    pub(crate) fn show_ages(&self) {
        self.ages.show(&self.http.ages);
    }

    #[cfg(test)]
    pub(super) fn ages(&self) -> &RequestAges {
        &self.ages
    }

    /// The handles of one worker.
    pub(crate) fn of_worker(&self, url: &str) -> WorkerMetrics {
        let outcome = |outcome| {
            self.resilience
                .cb_outcomes
                .with_label_values(&[url, outcome])
        };
        WorkerMetrics {
            name: url.into(),
            successes: outcome("success"),
            failures: outcome("failure"),
            outcomes: self.resilience.cb_outcomes.clone(),
            transitions: self.resilience.cb_transitions.clone(),
            cache: CacheMetrics {
                errors: self.worker.reports.cache_errors.clone(),
                emptied: self.worker.reports.cache_emptied.clone(),
                over: OnceLock::new(),
                under: OnceLock::new(),
            },
            forgotten: AtomicBool::new(false),
        }
    }

    /// The handles of a client's key, or of all that have this label.
    pub(crate) fn key(&self, label: &str) -> KeyMetrics {
        KeyMetrics {
            label: label.to_owned(),
            requests: self.keys.requests.with_label_values(&[label]),
            all_requests: self.keys.requests.clone(),
            all_refused: self.keys.refused.clone(),
            forgotten: AtomicBool::new(false),
        }
    }

    /// The file of clients' keys has changed.
    pub(crate) fn keys_reloaded(&self, result: &str) {
        self.keys.reloads.with_label_values(&[result]).inc();
    }

    /// The handles of admission.
    pub(crate) fn admission(&self) -> AdmissionMetrics {
        let result = |result| self.http.rate_limit.with_label_values(&[result]);
        AdmissionMetrics {
            allowed: result("allowed"),
            rejected: result("rejected"),
            waits: self.waits.clone(),
        }
    }

    /// A request goes to a worker once more.
    pub(crate) fn retry(&self, worker_type: WorkerType, endpoint: &str) {
        let retries = &self.resilience.retries;
        let labels = [worker_type.as_str(), endpoint];
        retries.with_label_values(&labels).inc();
    }

    /// A request that might have been tried again was not.
    pub(crate) fn retries_exhausted(&self, worker_type: WorkerType, endpoint: &str) {
        let exhausted = &self.resilience.retries_exhausted;
        let labels = [worker_type.as_str(), endpoint];
        exhausted.with_label_values(&labels).inc();
    }

    /// A request waits before its next try.
    pub(crate) fn backoff(&self, tries: u32, pause: Duration) {
        let mut digits = itoa::Buffer::new();
        self.resilience
            .retry_backoff
            .with_label_values(&[digits.format(tries)])
            .observe(pause.as_secs_f64());
    }

    /// A response that came from a worker.
    pub(crate) fn upstream_response(&self, status: u16) {
        if status == 200 {
            self.router.upstream_ok.inc();
        } else {
            let mut digits = itoa::Buffer::new();
            let labels = [HTTP, digits.format(status), ""];
            self.router
                .upstream_responses
                .with_label_values(&labels)
                .inc();
        }
    }

    /// A request that the gateway could not serve, whatever its model.
    pub(crate) fn request_error(&self, endpoint: &str, error: &Error) {
        let backend = Backend::Regular;
        let families = self.models.families();
        families.failed(backend, UNKNOWN_MODEL, endpoint, error);
    }

    /// The gateway's machine lacked something, and no worker is at fault.
    pub(crate) fn local_fault(&self, lacking: &str, error: &dyn Display) {
        self.router.local_faults.with_label_values(&[lacking]).inc();
        if let Some(left_out) = self.local_fault_lines.pass() {
            warn!(lacking, %error, left_out, "a call failed for want of the gateway's own resources");
        }
    }

    /// Files of certificates have changed: new ones are in force, or cannot be used.
    pub(crate) fn certificates_reloaded(&self, side: &str, result: &str) {
        let reloads = &self.router.certificate_reloads;
        reloads.with_label_values(&[side, result]).inc();
    }

    /// An exchange with a worker that failed in this way.
    pub(crate) fn worker_error(&self, worker_type: WorkerType, error_type: &str) {
        let labels = [worker_type.as_str(), HTTP, error_type];
        self.worker.errors.with_label_values(&labels).inc();
    }

    /// A request that waited for a worker in vain.
    pub(crate) fn rejected(&self) {
        self.http.rate_limit.with_label_values(&["rejected"]).inc();
    }

    /// A retry that the budget did not allow.
    pub(crate) fn retry_denied(&self, worker_type: WorkerType, endpoint: &str) {
        let denied = &self.resilience.retries_denied;
        let labels = [worker_type.as_str(), endpoint];
        denied.with_label_values(&labels).inc();
    }

    /// A probe of a worker: `success` or `failure`.
    pub(crate) fn health_check(&self, worker_type: WorkerType, result: &str) {
        let labels = [worker_type.as_str(), result];
        self.worker.health_checks.with_label_values(&labels).inc();
    }

    /// A worker's report on its load, from this source: `success` or `failure`.
    pub(crate) fn load_report(&self, source: &str, result: &str) {
        let loads = &self.worker.reports.loads;
        loads.with_label_values(&[source, result]).inc();
    }

    /// Options that were to change while the gateway runs.
    pub(crate) fn reloaded(&self, accepted: bool) {
        let result = if accepted { "success" } else { "failed" };
        self.router.reloads.with_label_values(&[result]).inc();
    }
}
