//! What the gateway tells about itself: log lines and `smg_*` metrics.

pub(crate) mod logging;
pub(crate) mod metrics;

pub use logging::close_log;
pub(crate) use metrics::{Metrics, ModelMetrics, RouteMetrics};
