//! One request's record, counted and logged when it ends.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use tokio::time::Instant;

use crate::admission::Permit;
use crate::auth::{KeyShare, Principal};
use crate::error::Error;
use crate::lane::Lane;
use crate::proxy::ReplyError;
use crate::telemetry::{AgeEntry, EndedRequest, ReplyEnd, RequestLog, RouteMetrics};

/// One request's record; counted and logged when dropped, on every path.
#[derive(Debug)]
pub(super) struct RequestRecord {
    metrics: Arc<RouteMetrics>,
    lane: Lane,
    started: Instant,
    /// When the reply began.
    replied: Option<Instant>,
    principal: Option<Principal>,
    id: HeaderValue,
    age: AgeEntry,
    status: StatusCode,
    code: &'static str,
    /// The gateway's own answer.
    error: Option<Arc<Error>>,
    pub(super) end: ReplyEnd,
    /// Its share of the limits, held to the last byte.
    permit: Permit,
    pub(super) log: RequestLog,
    /// The request's own method, which may be none of the route's; known with its reply.
    method: Option<Method>,
    /// Its share of its key's limits, held as long.
    key_share: Option<KeyShare>,
}

impl RequestRecord {
    pub(super) fn begin(
        metrics: &Arc<RouteMetrics>,
        lane: Lane,
        id: &HeaderValue,
        log: &RequestLog,
    ) -> Self {
        metrics.requests.inc();
        metrics.active.inc();
        let started = Instant::now();
        Self {
            age: metrics.ages.enter(lane.0, started),
            metrics: Arc::clone(metrics),
            lane,
            started,
            replied: None,
            principal: None,
            id: id.clone(),
            status: StatusCode::OK,
            code: "",
            error: None,
            end: ReplyEnd::ClientGone,
            permit: Permit::default(),
            log: log.clone(),
            method: None,
            key_share: None,
        }
    }

    /// The request shows where it comes from.
    pub(super) fn authorize(&mut self, principal: Principal) {
        self.principal = Some(principal);
    }

    /// The request has been let in.
    pub(super) fn admit(&mut self, permit: Permit) {
        self.permit = permit;
    }

    /// The request has a share of its key's limits.
    pub(super) fn hold(&mut self, share: Option<KeyShare>) {
        self.key_share = share;
    }

    /// The reply has said behind its head that the request failed.
    pub(super) fn fail_with(&mut self, code: &'static str) {
        self.code = code;
    }

    /// The response head is known; `error` is an answer of the gateway's own.
    pub(super) fn respond_with(
        &mut self,
        status: StatusCode,
        error: Option<Arc<Error>>,
        log: RequestLog,
    ) {
        let now = Instant::now();
        let elapsed = now - self.started;
        self.metrics.duration.observe(elapsed.as_secs_f64());
        self.replied = Some(now);
        self.status = status;
        self.code = error.as_deref().map_or("", Error::code);
        self.error = error;
        self.log = log;
    }

    /// The request came with this method.
    pub(super) fn set_method(&mut self, method: &Method) {
        self.method = Some(method.clone());
    }

    /// The reply has broken off.
    pub(super) fn break_off(&mut self, error: &ReplyError) {
        self.end = if matches!(error, ReplyError::ClientStalled) {
            ReplyEnd::ClientStalled
        } else {
            ReplyEnd::Truncated
        };
        self.log.failed(self.status, error.to_string());
    }

    fn write_lines(&self, status: u16) {
        self.metrics.lines.write(&EndedRequest {
            lane: self.lane.0,
            id: &self.id,
            key: self.principal.as_ref().map_or("", Principal::as_str),
            method: self
                .method
                .as_ref()
                .map_or(&self.metrics.method, Method::as_str),
            route: self.metrics.path,
            status,
            code: self.code,
            error: self.error.as_deref(),
            end: self.end,
            started: self.started,
            replied: self.replied,
            log: &self.log,
        });
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        self.metrics.active.dec();
        self.metrics.ages.leave(self.age);
        let (status, code) = match self.end {
            ReplyEnd::Complete => (self.status.as_u16(), self.code),
            ReplyEnd::Truncated | ReplyEnd::ClientStalled => (self.status.as_u16(), "stream_error"),
            // nginx's status for a client that closed the request.
            ReplyEnd::ClientGone => (499, "client_closed_request"),
        };
        self.metrics.response(status, code);
        self.write_lines(status);
    }
}
