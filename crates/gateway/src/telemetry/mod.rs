//! What the gateway reports of itself: log lines and `smg_*` metrics.

mod access_log;
mod daily_file;
mod json_line;
mod log_level;
mod log_limit;
pub(crate) mod logging;
mod metrics;
mod otel;
mod request_lines;
mod request_log;

pub(crate) use access_log::AccessLog;
pub(crate) use log_level::LogLevelError;
pub(crate) use log_limit::LogLimit;
pub use logging::close_log;
pub(crate) use metrics::{
    AdmissionMetrics, AgeEntry, Backend, BranchMetrics, CachedTokens, KeyMetrics, Metrics,
    ModelMetrics, RouteMetrics, SERVED, UNKNOWN_MODEL, WorkerMetrics, WorkerType,
};
pub(crate) use otel::{AttemptSpan, Choice, Leg, TraceExporter, Traces};
pub(crate) use request_lines::{EndedRequest, ReplyEnd, RequestLines};
pub(crate) use request_log::{RequestLog, Route, Usage};
