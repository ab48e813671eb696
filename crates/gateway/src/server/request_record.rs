//! One request's record, counted when it ends.

use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use crate::admission::Permit;
use crate::telemetry::RouteMetrics;

/// How a request ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client left, or the reply was not written to its end.
    ClientGone,
    /// The worker's body broke off.
    Truncated,
    /// It was written to its end.
    Complete,
}

/// One request's record; counted when dropped, on every path.
#[derive(Debug)]
pub(super) struct RequestRecord {
    metrics: Arc<RouteMetrics>,
    started: Instant,
    status: StatusCode,
    code: &'static str,
    pub(super) end: End,
    /// Its share of the limits, held to the last byte.
    permit: Permit,
}

impl RequestRecord {
    pub(super) fn begin(metrics: &Arc<RouteMetrics>) -> Self {
        metrics.requests.inc();
        metrics.active.inc();
        Self {
            metrics: Arc::clone(metrics),
            started: Instant::now(),
            status: StatusCode::OK,
            code: "",
            end: End::ClientGone,
            permit: Permit::default(),
        }
    }

    /// The request has been let in.
    pub(super) fn admit(&mut self, permit: Permit) {
        self.permit = permit;
    }

    /// The reply has said behind its head that the request failed.
    pub(super) fn fail_with(&mut self, code: &'static str) {
        self.code = code;
    }

    /// The response head is known.
    pub(super) fn respond_with(&mut self, status: StatusCode, code: &'static str) {
        self.metrics
            .duration
            .observe(self.started.elapsed().as_secs_f64());
        self.status = status;
        self.code = code;
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        self.metrics.active.dec();
        match self.end {
            End::Complete => self.metrics.response(self.status.as_u16(), self.code),
            End::Truncated => self.metrics.response(self.status.as_u16(), "stream_error"),
            // nginx's status for a client that closed the request.
            End::ClientGone => self.metrics.response(499, "client_closed_request"),
        }
    }
}
