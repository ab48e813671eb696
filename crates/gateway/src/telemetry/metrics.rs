//! The `smg_*` metrics. Handles are resolved when routes and workers are made, not per request.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::branches::Policies;
use super::handles::{AdmissionMetrics, HTTP, REGULAR, RouteMetrics, WorkerMetrics};
use super::models::Models;
use crate::error::Error;

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
    /// What is told about clients.
    pub(crate) http: Http,
    router: Router,
    /// What is told about workers.
    pub(crate) worker: Worker,
    /// What is told about failures.
    pub(crate) resilience: Resilience,
    pub(super) policies: Policies,
    /// What is told by model.
    pub(super) models: Arc<Models>,
}

/// The client's side.
#[derive(Debug)]
pub(crate) struct Http {
    requests: IntCounterVec,
    duration: HistogramVec,
    responses: IntCounterVec,
    active: IntGauge,
    rate_limit: IntCounterVec,
    /// Requests that wait for a place, and how many may.
    pub(crate) queued: IntGauge,
    pub(crate) queue_limit: IntGauge,
}

/// Between the two.
#[derive(Debug)]
struct Router {
    upstream_responses: IntCounterVec,
    upstream_ok: IntCounter,
}

/// The workers' side. Gauges are set when somebody asks, from the fleet's own counters.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pool_size: IntGaugeVec,
    pub(crate) connections_active: IntGaugeVec,
    pub(crate) requests_active: IntGaugeVec,
    pub(crate) health: IntGaugeVec,
    health_checks: IntCounterVec,
    errors: IntCounterVec,
    registrations: IntCounterVec,
    deregistrations: IntCounterVec,
}

/// Breakers and retries.
#[derive(Debug)]
pub(crate) struct Resilience {
    pub(crate) cb_state: IntGaugeVec,
    pub(crate) cb_failures: IntGaugeVec,
    pub(crate) cb_successes: IntGaugeVec,
    cb_transitions: IntCounterVec,
    cb_outcomes: IntCounterVec,
    retries: IntCounterVec,
    retries_exhausted: IntCounterVec,
    retries_denied: IntCounterVec,
    retry_backoff: HistogramVec,
}

/// Makes metrics and registers them.
pub(super) struct Maker<'a> {
    registry: &'a Registry,
    buckets: &'a [f64],
}

impl Maker<'_> {
    pub(super) fn counter(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn gauge(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntGaugeVec> {
        let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn number(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let metric = IntGauge::new(name, help)?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn seconds(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<HistogramVec> {
        let opts = HistogramOpts::new(name, help).buckets(self.buckets.to_vec());
        let metric = HistogramVec::new(opts, labels)?;
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
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
        Ok(Self {
            registry,
            http,
            models: Arc::new(models),
            router,
            worker,
            resilience,
            policies,
        })
    }

    /// Everything in the Prometheus text format 0.0.4.
    pub(crate) fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// The handles of one route.
    pub(crate) fn route(&self, method: &str, path: &'static str) -> RouteMetrics {
        RouteMetrics {
            path,
            requests: self.http.requests.with_label_values(&[method, path]),
            duration: self.http.duration.with_label_values(&[method, path]),
            ok: self.http.responses.with_label_values(&[path, "200", ""]),
            responses: self.http.responses.clone(),
            active: self.http.active.clone(),
        }
    }

    pub(super) fn cut_replies(&self) -> IntCounter {
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
            url: url.to_owned(),
            successes: outcome("success"),
            failures: outcome("failure"),
            outcomes: self.resilience.cb_outcomes.clone(),
            transitions: self.resilience.cb_transitions.clone(),
        }
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

    /// A worker was told to leave.
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

impl Http {
    fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            active: maker.number("smg_http_connections_active", "requests in progress")?,
            rate_limit: maker.counter(
                "smg_http_rate_limit_total",
                "inference requests admitted and refused, where there is a limit",
                &["result"],
            )?,
            queued: maker.number("smg_http_queue_depth", "requests that wait for a place")?,
            queue_limit: maker.number("smg_http_queue_size_limit", "requests that may wait")?,
            requests: maker.counter(
                "smg_http_requests_total",
                "requests received",
                &["method", "path"],
            )?,
            duration: maker.seconds(
                "smg_http_request_duration_seconds",
                "time to the response head",
                &["method", "path"],
            )?,
            responses: maker.counter(
                "smg_http_responses_total",
                "replies, counted when they end",
                &["path", "status_code", "error_code"],
            )?,
        })
    }
}

impl Router {
    fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let upstream_responses = maker.counter(
            "smg_router_upstream_responses_total",
            "response heads received from workers",
            &["router_type", "status_code", "error_code"],
        )?;
        Ok(Self {
            upstream_ok: upstream_responses.with_label_values(&[HTTP, "200", ""]),
            upstream_responses,
        })
    }
}

impl Worker {
    fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            pool_size: maker.gauge(
                "smg_worker_pool_size",
                "workers known",
                &["worker_type", "connection_mode", "model"],
            )?,
            connections_active: maker.gauge(
                "smg_worker_connections_active",
                "requests in flight at all workers",
                &["worker_type", "connection_mode"],
            )?,
            requests_active: maker.gauge(
                "smg_worker_requests_active",
                "requests in flight at a worker",
                &["worker"],
            )?,
            health: maker.gauge("smg_worker_health", "1 ready, 0 not", &["worker"])?,
            health_checks: maker.counter(
                "smg_worker_health_checks_total",
                "probes of workers",
                &["worker_type", "result"],
            )?,
            errors: maker.counter(
                "smg_worker_errors_total",
                "exchanges with workers that failed",
                &["worker_type", "connection_mode", "error_type"],
            )?,
            registrations: maker.counter(
                "smg_discovery_registrations_total",
                "workers registered at run time",
                &["source", "result"],
            )?,
            deregistrations: maker.counter(
                "smg_discovery_deregistrations_total",
                "workers told to leave",
                &["source", "reason"],
            )?,
        })
    }
}

impl Resilience {
    fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            cb_state: maker.gauge(
                "smg_worker_cb_state",
                "circuit breaker: 0 closed, 1 open, 2 half-open",
                &["worker"],
            )?,
            cb_failures: maker.gauge(
                "smg_worker_cb_consecutive_failures",
                "failures in a row",
                &["worker"],
            )?,
            cb_successes: maker.gauge(
                "smg_worker_cb_consecutive_successes",
                "trials in a row that succeeded since the breaker half-opened",
                &["worker"],
            )?,
            cb_transitions: maker.counter(
                "smg_worker_cb_transitions_total",
                "changes of circuit breakers",
                &["worker", "from", "to"],
            )?,
            cb_outcomes: maker.counter(
                "smg_worker_cb_outcomes_total",
                "tries that say something about a worker",
                &["worker", "outcome"],
            )?,
            retries: maker.counter(
                "smg_worker_retries_total",
                "requests sent once more",
                &["worker_type", "endpoint"],
            )?,
            retries_exhausted: maker.counter(
                "smg_worker_retries_exhausted_total",
                "requests that failed with no retry left",
                &["worker_type", "endpoint"],
            )?,
            retries_denied: maker.counter(
                "smg_worker_retry_budget_exhausted_total",
                "retries that the budget did not allow",
                &["worker_type", "endpoint"],
            )?,
            retry_backoff: maker.seconds(
                "smg_worker_retry_backoff_seconds",
                "pauses before another try",
                &["attempt"],
            )?,
        })
    }
}
