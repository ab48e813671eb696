//! The metrics with a label `model`.

use prometheus::{HistogramVec, IntCounterVec};

use super::labels::{Backend, HTTP};
use super::registry::Maker;
use crate::error::Error;

/// Every metric with a label `model` that is counted.
#[derive(Debug)]
pub(super) struct ModelFamilies {
    pub(super) requests: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) ttft: HistogramVec,
    pub(super) tpot: HistogramVec,
    pub(super) generation: HistogramVec,
    pub(super) tokens: IntCounterVec,
    pub(super) cached: IntCounterVec,
    pub(super) prefill: HistogramVec,
    pub(super) pair_ttft: HistogramVec,
    pub(super) errors: IntCounterVec,
    /// Of workers of any model.
    pub(super) worker_errors: IntCounterVec,
    pub(super) selection: IntCounterVec,
}

/// Which labels a request has at its model.
const REQUEST: [&str; 5] = [
    "router_type",
    "backend_type",
    "connection_mode",
    "model",
    "endpoint",
];
const STREAM: [&str; 4] = ["router_type", "backend_type", "model", "endpoint"];
const PAIR: [&str; 3] = ["backend_type", "model", "runtime"];

/// The times of replies, in seconds.
struct Times {
    duration: HistogramVec,
    ttft: HistogramVec,
    tpot: HistogramVec,
    generation: HistogramVec,
    prefill: HistogramVec,
    pair_ttft: HistogramVec,
}

impl Times {
    fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            duration: maker.seconds(
                "smg_router_request_duration_seconds",
                "routing decision to the end of the reply",
                &REQUEST,
            )?,
            ttft: maker.seconds(
                "smg_router_ttft_seconds",
                "routing decision to the first event of a streamed reply",
                &STREAM,
            )?,
            tpot: maker.seconds(
                "smg_router_tpot_seconds",
                "time per output token behind the first, the mean of a streamed reply",
                &STREAM,
            )?,
            generation: maker.seconds(
                "smg_router_generation_duration_seconds",
                "routing decision to the end of a streamed reply that is complete",
                &STREAM,
            )?,
            prefill: maker.seconds(
                "smg_pd_prefill_duration_seconds",
                "request to the end of the prefill worker's reply",
                &PAIR,
            )?,
            pair_ttft: maker.seconds(
                "smg_pd_ttft_seconds",
                "routing decision to the first event of a pair's streamed reply",
                &PAIR,
            )?,
        })
    }
}

impl ModelFamilies {
    /// `worker_errors` count exchanges that failed, whatever the model.
    pub(super) fn new(
        maker: &Maker<'_>,
        worker_errors: &IntCounterVec,
    ) -> prometheus::Result<Self> {
        let request = |extra| [&REQUEST[..], &[extra]].concat();
        let reply = |extra| [&STREAM[..], &[extra]].concat();
        let times = Times::new(maker)?;
        Ok(Self {
            duration: times.duration,
            ttft: times.ttft,
            tpot: times.tpot,
            generation: times.generation,
            prefill: times.prefill,
            pair_ttft: times.pair_ttft,
            requests: maker.counter(
                "smg_router_requests_total",
                "requests sent to a worker",
                &request("streaming"),
            )?,
            tokens: maker.counter(
                "smg_router_tokens_total",
                "tokens that replies report",
                &reply("token_type"),
            )?,
            cached: maker.counter(
                "smg_router_cached_tokens_total",
                "cached prompt tokens of replies that report them, and those that routing predicted",
                &reply("source"),
            )?,
            errors: maker.counter(
                "smg_router_request_errors_total",
                "requests the gateway could not serve",
                &request("error_type"),
            )?,
            selection: maker.counter(
                "smg_worker_selection_total",
                "times a policy chose a worker",
                &["worker_type", "connection_mode", "model", "policy"],
            )?,
            worker_errors: worker_errors.clone(),
        })
    }

    /// A request that the gateway could not serve.
    pub(super) fn failed(&self, backend: Backend, model: &str, endpoint: &str, error: &Error) {
        let backend = backend.as_str();
        let labels = [HTTP, backend, HTTP, model, endpoint, error.metric_type()];
        self.errors.with_label_values(&labels).inc();
    }
}
