//! A traced request that has ended, on its way to the thread that sends it.

use std::sync::Arc;

use http::HeaderValue;
use tokio::time::Instant;

use super::trace_log::TraceLog;
use crate::telemetry::request_log::Usage;

/// All that the spans of a request say.
#[derive(Debug)]
pub(in crate::telemetry) struct TraceRecord {
    pub(in crate::telemetry) log: TraceLog,
    pub(in crate::telemetry) id: HeaderValue,
    /// The key that it came with, by its name.
    pub(in crate::telemetry) key: Box<str>,
    pub(in crate::telemetry) method: Box<str>,
    pub(in crate::telemetry) route: &'static str,
    pub(in crate::telemetry) status: u16,
    pub(in crate::telemetry) code: &'static str,
    /// Why the servers failed, if they did.
    pub(in crate::telemetry) failure: Option<String>,
    pub(in crate::telemetry) started: Instant,
    /// The worker's first byte, or the head of another reply.
    pub(in crate::telemetry) first_byte: Option<Instant>,
    pub(in crate::telemetry) last_byte: Instant,
    pub(in crate::telemetry) model: Option<Arc<str>>,
    pub(in crate::telemetry) worker: Option<Arc<str>>,
    pub(in crate::telemetry) prefill: Option<Arc<str>>,
    pub(in crate::telemetry) policy: &'static str,
    pub(in crate::telemetry) streaming: bool,
    pub(in crate::telemetry) usage: Usage,
}

#[cfg(test)]
impl TraceRecord {
    /// Of a request with this log that was answered at once.
    pub(super) fn with_log(log: TraceLog) -> Self {
        let now = Instant::now();
        Self {
            log,
            id: HeaderValue::from_static("id"),
            key: "key".into(),
            method: "POST".into(),
            route: "/generate",
            status: 200,
            code: "",
            failure: None,
            started: now,
            first_byte: Some(now),
            last_byte: now,
            model: None,
            worker: None,
            prefill: None,
            policy: "",
            streaming: false,
            usage: Usage::default(),
        }
    }
}
