//! Metric handles, resolved once: counting costs a request no look-up of labels.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

/// The handles of one route.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    pub(super) path: &'static str,
    pub(crate) requests: IntCounter,
    pub(crate) duration: Histogram,
    pub(super) ok: IntCounter,
    pub(super) responses: IntCounterVec,
    pub(crate) active: IntGauge,
}

impl RouteMetrics {
    /// A reply ended.
    pub(crate) fn response(&self, status: u16, error_code: &str) {
        if status == 200 && error_code.is_empty() {
            self.ok.inc();
        } else {
            let mut digits = itoa::Buffer::new();
            let labels = [self.path, digits.format(status), error_code];
            self.responses.with_label_values(&labels).inc();
        }
    }
}

/// The handles of one worker.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    pub(super) url: String,
    /// Tries that speak for it.
    pub(crate) successes: IntCounter,
    /// Tries that speak against it.
    pub(crate) failures: IntCounter,
    pub(super) transitions: IntCounterVec,
}

impl WorkerMetrics {
    /// Its circuit breaker changed.
    pub(crate) fn transition(&self, from: &str, to: &str) {
        let labels = [&self.url, from, to];
        self.transitions.with_label_values(&labels).inc();
    }
}

/// The handles of admission.
#[derive(Debug)]
pub(crate) struct AdmissionMetrics {
    /// Requests let in.
    pub(crate) allowed: IntCounter,
    /// Requests refused.
    pub(crate) rejected: IntCounter,
}

/// The handles of one model.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    /// Times its policy chose a worker.
    pub(crate) selections: IntCounter,
    /// Replies that broke off after their first byte.
    pub(crate) cut_replies: IntCounter,
    /// By [`Inference::index`](crate::endpoint::Inference::index).
    pub(crate) endpoints: Vec<EndpointMetrics>,
}

/// The handles of one model at one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointMetrics {
    pub(super) requests: [IntCounter; 2],
    /// Routing decision to the end of the reply.
    pub(crate) duration: Histogram,
    /// Routing decision to the first byte of a stream.
    pub(crate) ttft: Histogram,
}

impl EndpointMetrics {
    /// Requests sent to a worker.
    pub(crate) fn requests(&self, streaming: bool) -> &IntCounter {
        let [whole, streamed] = &self.requests;
        if streaming { streamed } else { whole }
    }
}
