//! What the gateway tells about itself: log lines and `smg_*` metrics.

mod branches;
mod handles;
pub(crate) mod logging;
pub(crate) mod metrics;
mod models;

pub(crate) use branches::BranchMetrics;
pub(crate) use handles::{AdmissionMetrics, RouteMetrics, WorkerMetrics};
pub use logging::close_log;
pub(crate) use metrics::Metrics;
pub(crate) use models::{ModelMetrics, UNKNOWN_MODEL};
