//! What is measured of a request, from the routing decision to its end.

use std::sync::Arc;

use tokio::time::Instant;

use crate::endpoint::Inference;
use crate::telemetry::ModelMetrics;

/// Observes the times of one request; the whole when it is dropped.
#[derive(Debug)]
pub(super) struct RequestTimer {
    model: Arc<ModelMetrics>,
    row: &'static Inference,
    /// A streamed reply of which no byte has come yet.
    awaits_first_byte: bool,
    decided: Instant,
}

impl RequestTimer {
    pub(super) fn start(
        model: Arc<ModelMetrics>,
        row: &'static Inference,
        streaming: bool,
        decided: Instant,
    ) -> Self {
        Self {
            model,
            row,
            awaits_first_byte: streaming,
            decided,
        }
    }

    /// The request goes to a worker of this model now.
    pub(super) fn follow(&mut self, model: &Arc<ModelMetrics>) {
        if !Arc::ptr_eq(&self.model, model) {
            self.model = Arc::clone(model);
        }
    }

    /// The first byte of the reply has come.
    pub(super) fn first_byte(&mut self) {
        if std::mem::take(&mut self.awaits_first_byte)
            && let Some(metrics) = self.model.endpoint(self.row.index)
        {
            metrics.ttft.observe(self.decided.elapsed().as_secs_f64());
        }
    }

    /// The reply broke off.
    pub(super) fn truncated(&self) {
        self.model.cut_replies.inc();
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        if let Some(metrics) = self.model.endpoint(self.row.index) {
            metrics
                .duration
                .observe(self.decided.elapsed().as_secs_f64());
        }
    }
}
