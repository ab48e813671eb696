//! What is measured of a request, from the routing decision to its end.

use std::sync::Arc;

use tokio::time::Instant;

use super::request::ProxyRequest;
use crate::endpoint::Inference;
use crate::telemetry::{ModelMetrics, RequestLog, Usage};

/// Observes the times of one request; the whole when it is dropped.
#[derive(Debug)]
pub(super) struct RequestTimer {
    model: Arc<ModelMetrics>,
    row: &'static Inference,
    /// The reply is streamed, and no byte of it has come yet.
    awaits_first_byte: bool,
    decided: Instant,
    log: RequestLog,
}

impl RequestTimer {
    /// Counts a request that goes to a worker of `model` now.
    pub(super) fn start(request: &ProxyRequest<'_>, model: &Arc<ModelMetrics>) -> Self {
        if let Some(endpoint) = model.endpoint(request.row.index) {
            endpoint.requests(request.streaming).inc();
        }
        Self {
            model: Arc::clone(model),
            row: request.row,
            awaits_first_byte: request.streaming,
            decided: Instant::now(),
            log: request.context.log.clone(),
        }
    }

    /// The request goes to a worker of this model now.
    pub(super) fn set_model(&mut self, model: &Arc<ModelMetrics>, log: &RequestLog) {
        if !self.log.is_begun() {
            self.log = log.clone();
        }
        if !Arc::ptr_eq(&self.model, model) {
            self.model = Arc::clone(model);
        }
    }

    /// The first byte of the reply has come.
    pub(super) fn first_byte(&mut self) {
        if std::mem::take(&mut self.awaits_first_byte)
            && let Some(metrics) = self.model.endpoint(self.row.index)
        {
            let now = Instant::now();
            metrics.ttft.observe((now - self.decided).as_secs_f64());
            self.log.first_byte(now);
        }
    }

    /// The reply has said how many tokens there were.
    pub(super) fn counted(&self, usage: Usage) {
        self.log.counted(usage);
    }

    /// The reply broke off.
    pub(super) fn truncated(&self) {
        self.model.cut_replies.inc();
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        if let Some(metrics) = self.model.endpoint(self.row.index) {
            let now = Instant::now();
            metrics.duration.observe((now - self.decided).as_secs_f64());
            self.log.last_byte(now);
        }
    }
}
