//! The `smg_*` metrics. Handles are resolved when routes and workers are made, not per request.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, Registry, TextEncoder};
use routing::PolicyKind;
use tracing::warn;

use super::families::{Http, Keys, Resilience, Router, Worker};
use super::handles::{AdmissionMetrics, HTTP, KeyMetrics, REGULAR, RouteMetrics, WorkerMetrics};
use super::model::{ModelMetrics, Models};
use super::policy::{BranchMetrics, Policies};
use super::registry::Maker;
use crate::error::Error;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::log_limit::LogLimit;
use crate::telemetry::logging::dropped_lines;
use crate::telemetry::request_lines::RequestLines;

/// Bucket bounds of duration histograms, seconds, when no others are asked for.
const DURATION_BUCKETS: [f64; 20] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 45.0, 60.0,
    90.0, 120.0, 180.0, 240.0,
];

/// Where registrations by request come from.
const MANUAL: &str = "manual";

/// Every metric of one gateway. Not global: several gateways may live in a process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// About clients.
    pub(crate) http: Http,
    router: Router,
    /// About workers.
    pub(crate) worker: Worker,
    /// About failures.
    pub(crate) resilience: Resilience,
    policies: Policies,
    keys: Keys,
    /// By model.
    pub(super) models: Arc<Models>,
    local_fault_lines: LogLimit,
    dropped_lines: IntCounterVec,
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
        let (policies, models) = (Policies::new(&maker)?, Models::new(&maker)?);
        let dropped_lines = maker.counter(
            "smg_log_dropped_lines",
            "log lines that were not written, for their writer fell behind or failed",
            &["log"],
        )?;
        let keys = Keys::new(&maker)?;
        Ok(Self {
            registry,
            http,
            models: Arc::new(models),
            router,
            worker,
            resilience,
            policies,
            keys,
            local_fault_lines: LogLimit::default(),
            dropped_lines,
            lines: Arc::default(),
        })
    }

    /// The same, with an access log; before any route is made.
    pub(crate) fn with_access_log(mut self, access: AccessLog) -> Self {
        self.lines = Arc::new(RequestLines::new(Some(access)));
        self
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
        }
    }

    /// The handles of one model.
    pub(crate) fn model(&self, model: &str) -> Arc<ModelMetrics> {
        self.models.handles(model, || self.cut_replies())
    }

    /// The handles of all policies' branches; `in_force` is the policy at work.
    pub(crate) fn branches(&self, in_force: PolicyKind) -> BranchMetrics {
        self.policies.handles(in_force)
    }

    /// How many routing keys are remembered, where any policy remembers some.
    pub(crate) fn sticky_keys(&self, keys: Option<usize>) {
        self.policies.sticky_keys(keys);
    }

    fn cut_replies(&self) -> IntCounter {
        let labels = [REGULAR, HTTP, "stream_error"];
        self.worker.errors.with_label_values(&labels)
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
        }
    }

    /// The handles of a client's key, or of all that have this label.
    pub(crate) fn key(&self, label: &str) -> KeyMetrics {
        KeyMetrics {
            label: label.to_owned(),
            requests: self.keys.requests.with_label_values(&[label]),
            all_requests: self.keys.requests.clone(),
            all_refused: self.keys.refused.clone(),
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
        }
    }

    /// A request goes to a worker once more.
    pub(crate) fn retry(&self, endpoint: &str) {
        let retries = &self.resilience.retries;
        retries.with_label_values(&[REGULAR, endpoint]).inc();
    }

    /// A request that might have been tried again was not.
    pub(crate) fn retries_exhausted(&self, endpoint: &str) {
        let exhausted = &self.resilience.retries_exhausted;
        exhausted.with_label_values(&[REGULAR, endpoint]).inc();
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

    /// A request that the gateway could not serve.
    pub(crate) fn request_error(&self, model: &str, endpoint: &str, error: &Error) {
        let labels = [HTTP, REGULAR, HTTP, model, endpoint, error.metric_type()];
        self.models.errors.with_label_values(&labels).inc();
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

    /// A try at a worker that gave no response.
    pub(crate) fn worker_error(&self, error: &Error) {
        let labels = [REGULAR, HTTP, error.code()];
        self.worker.errors.with_label_values(&labels).inc();
    }

    /// A request that waited for a worker in vain.
    pub(crate) fn rejected(&self) {
        self.http.rate_limit.with_label_values(&["rejected"]).inc();
    }

    /// A retry that the budget did not allow.
    pub(crate) fn retry_denied(&self, endpoint: &str) {
        let denied = &self.resilience.retries_denied;
        denied.with_label_values(&[REGULAR, endpoint]).inc();
    }

    /// What became of a registration by request.
    pub(crate) fn registered(&self, result: &str) {
        let registrations = &self.worker.registrations;
        registrations.with_label_values(&[MANUAL, result]).inc();
    }

    /// The removal of a worker began.
    pub(crate) fn deregistered(&self, reason: &str) {
        let deregistrations = &self.worker.deregistrations;
        deregistrations.with_label_values(&[MANUAL, reason]).inc();
    }

    /// A probe of a worker.
    pub(crate) fn health_check(&self, passed: bool) {
        let result = if passed { "success" } else { "failure" };
        self.worker
            .health_checks
            .with_label_values(&[REGULAR, result])
            .inc();
    }
}
