//! The families of metrics, by the side they describe.

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::labels::HTTP;
use super::registry::Maker;

/// The client's side.
#[derive(Debug)]
pub(crate) struct Http {
    pub(super) requests: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) responses: IntCounterVec,
    pub(super) active: IntGauge,
    pub(super) ages: IntGaugeVec,
    pub(super) rate_limit: IntCounterVec,
    /// Requests that wait for a place, and how many may.
    pub(crate) queued: IntGauge,
    pub(crate) queue_limit: IntGauge,
    /// Bytes of memory that request bodies have taken of their budget.
    pub(crate) buffered_bytes: IntGauge,
}

/// Between clients and workers.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) upstream_responses: IntCounterVec,
    pub(super) upstream_ok: IntCounter,
    pub(super) local_faults: IntCounterVec,
    pub(super) certificate_reloads: IntCounterVec,
    pub(super) reloads: IntCounterVec,
}

/// The workers' side. Gauges are set when metrics are read, from the fleet's own counters.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pool_size: IntGaugeVec,
    pub(crate) connections_active: IntGaugeVec,
    pub(crate) requests_active: IntGaugeVec,
    pub(crate) queued_tokens: IntGaugeVec,
    pub(crate) routing_keys_active: IntGaugeVec,
    pub(crate) reports: WorkerReports,
    pub(crate) health: IntGaugeVec,
    pub(crate) drained: IntGaugeVec,
    pub(super) health_checks: IntCounterVec,
    pub(super) errors: IntCounterVec,
}

/// What workers and their replies report.
#[derive(Debug)]
pub(crate) struct WorkerReports {
    pub(crate) requests: IntGaugeVec,
    pub(crate) queued_tokens: IntGaugeVec,
    pub(crate) kv_tokens: IntGaugeVec,
    pub(crate) prefill_speed: IntGaugeVec,
    pub(super) loads: IntCounterVec,
    pub(super) cache_errors: IntCounterVec,
    pub(super) cache_emptied: IntCounterVec,
}

/// Keys of clients.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) requests: IntCounterVec,
    pub(super) refused: IntCounterVec,
    pub(super) reloads: IntCounterVec,
}

/// Breakers and retries.
#[derive(Debug)]
pub(crate) struct Resilience {
    pub(crate) cb_state: IntGaugeVec,
    pub(crate) cb_failures: IntGaugeVec,
    pub(crate) cb_successes: IntGaugeVec,
    pub(super) cb_transitions: IntCounterVec,
    pub(super) cb_outcomes: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) retries_exhausted: IntCounterVec,
    pub(super) retries_denied: IntCounterVec,
    pub(super) retry_backoff: HistogramVec,
    /// Retries that would be granted now.
    pub(crate) retry_budget: IntGauge,
}

impl Http {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            active: maker.number("smg_http_connections_active", "requests in progress")?,
            ages: maker.gauge(
                "smg_http_inflight_request_age_count",
                "requests in progress by age in seconds: above gt, at most le",
                &["gt", "le"],
            )?,
            rate_limit: maker.counter(
                "smg_http_rate_limit_total",
                "inference requests admitted and refused, where there is a limit",
                &["result"],
            )?,
            queued: maker.number("smg_http_queue_depth", "requests that wait for a place")?,
            queue_limit: maker.number("smg_http_queue_size_limit", "requests that may wait")?,
            buffered_bytes: maker.number(
                "smg_http_buffered_bytes",
                "memory that request bodies over 64 KiB have taken of their budget",
            )?,
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
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let upstream_responses = maker.counter(
            "smg_router_upstream_responses_total",
            "response heads received from workers",
            &["router_type", "status_code", "error_code"],
        )?;
        Ok(Self {
            upstream_ok: upstream_responses.with_label_values(&[HTTP, "200", ""]),
            upstream_responses,
            local_faults: maker.counter(
                "smg_local_faults_total",
                "calls that failed because the gateway's machine lacked descriptors, ports, memory or an answer of its name service",
                &["lacking"],
            )?,
            certificate_reloads: maker.counter(
                "smg_tls_certificate_reloads_total",
                "changes of certificate files that were taken, or could not be",
                &["side", "result"],
            )?,
            reloads: maker.counter(
                "smg_config_reloads_total",
                "options that were to change at run time",
                &["result"],
            )?,
        })
    }
}

impl Worker {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
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
            queued_tokens: maker.gauge(
                "smg_worker_queued_tokens",
                "prompt tokens that a worker has yet to compute",
                &["worker"],
            )?,
            routing_keys_active: maker.gauge(
                "smg_worker_routing_keys_active",
                "routing keys of the requests in flight at a worker",
                &["worker"],
            )?,
            reports: WorkerReports::new(maker)?,
            health: maker.gauge("smg_worker_health", "1 ready, 0 not", &["worker"])?,
            drained: maker.gauge(
                "smg_worker_drained",
                "1 drained by request, 0 not",
                &["worker"],
            )?,
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
        })
    }
}

impl Keys {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            requests: maker.counter(
                "smg_api_key_requests_total",
                "requests with a key of the file of keys",
                &["key"],
            )?,
            refused: maker.counter(
                "smg_api_key_refused_total",
                "requests refused by a limit of their key",
                &["key", "limit"],
            )?,
            reloads: maker.counter(
                "smg_api_keys_reloads_total",
                "changes of the file of keys",
                &["result"],
            )?,
        })
    }
}

impl WorkerReports {
    fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            requests: maker.gauge(
                "smg_worker_reported_requests",
                "requests that a worker reports, running and waiting",
                &["worker"],
            )?,
            queued_tokens: maker.gauge(
                "smg_worker_reported_queued_tokens",
                "prompt tokens that a worker reports it has yet to compute",
                &["worker"],
            )?,
            kv_tokens: maker.gauge(
                "smg_worker_reported_kv_tokens",
                "tokens of running requests in a worker's memory, as it reports",
                &["worker"],
            )?,
            prefill_speed: maker.gauge(
                "smg_worker_prefill_tokens_per_second",
                "prompt tokens that a worker computes per second of prefill, by its reports",
                &["worker"],
            )?,
            loads: maker.counter(
                "smg_worker_load_reports_total",
                "reports of workers on their loads",
                &["source", "result"],
            )?,
            cache_errors: maker.counter(
                "smg_worker_cache_prediction_error_tokens_total",
                "tokens by which predictions of cached tokens differ from what replies report",
                &["worker", "direction"],
            )?,
            cache_emptied: maker.counter(
                "smg_worker_cache_emptied_total",
                "times that replies show an emptied cache",
                &["worker"],
            )?,
        })
    }
}

impl Resilience {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
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
            retry_budget: maker.number(
                "smg_worker_retry_budget_available",
                "retries that the budget would grant now",
            )?,
            retry_backoff: maker.seconds(
                "smg_worker_retry_backoff_seconds",
                "pauses before another try",
                &["attempt"],
            )?,
        })
    }
}
