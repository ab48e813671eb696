//! Waits in the fair order, by class: `smg_queue_wait_seconds` and `smg_queue_requests_total`.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};
use routing::Class;

use super::registry::Maker;

/// What became of requests that waited.
#[derive(Clone, Debug)]
pub(crate) struct WaitMetrics {
    waits: HistogramVec,
    requests: IntCounterVec,
}

impl WaitMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            waits: maker.seconds(
                "smg_queue_wait_seconds",
                "waits in the fair order that ended with a place",
                &["class"],
            )?,
            requests: maker.counter(
                "smg_queue_requests_total",
                "requests that had to wait in the fair order, by how that ended",
                &["class", "result"],
            )?,
        })
    }

    /// A request waits no longer.
    pub(crate) fn ended(&self, class: Class, result: &'static str, waited: Duration) {
        let labels = [class.as_str(), result];
        self.requests.with_label_values(&labels).inc();
        if result == SERVED {
            let waits = self.waits.with_label_values(&[class.as_str()]);
            waits.observe(waited.as_secs_f64());
        }
    }
}

/// The result of a wait that ended with a place.
pub(crate) const SERVED: &str = "served";
