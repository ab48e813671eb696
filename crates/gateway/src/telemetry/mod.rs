//! What the gateway reports of itself: log lines and `smg_*` metrics.

mod log_limit;
pub(crate) mod logging;
mod metrics;

pub(crate) use log_limit::LogLimit;
pub use logging::close_log;
pub(crate) use metrics::{
    AdmissionMetrics, BranchMetrics, Metrics, ModelMetrics, RouteMetrics, UNKNOWN_MODEL,
    WorkerMetrics,
};
