//! The reply as the client's connection reads it, with the one place where a request ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::in_progress::InProgress;
use crate::admission::Permit;
use crate::proxy::{ReplyBody, ReplyError};
use crate::telemetry::RouteMetrics;

/// A reply's body and the record of its request.
#[derive(Debug)]
pub(crate) struct Reply {
    body: ReplyBody,
    record: RequestRecord,
    _in_progress: InProgress,
}

impl Reply {
    /// `bodiless`: the client asked with HEAD and will not read the body.
    pub(super) fn new(
        body: ReplyBody,
        (mut record, in_progress): (RequestRecord, InProgress),
        bodiless: bool,
    ) -> Self {
        if bodiless || body.is_end_stream() {
            record.end = End::Complete;
        }
        Self {
            body,
            record,
            _in_progress: in_progress,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.record.end = End::Truncated,
            // hyper stops asking once the announced length is reached.
            _ if frame.is_none() || self.body.is_complete() => self.record.end = End::Complete,
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How a request ended.
#[derive(Debug)]
enum End {
    /// The client left, or the reply was not written to its end.
    ClientGone,
    /// The worker's body broke off.
    Truncated,
    /// As it should.
    Complete,
}

/// One request's record at the door; counted when dropped, on every path.
#[derive(Debug)]
pub(super) struct RequestRecord {
    metrics: Arc<RouteMetrics>,
    started: Instant,
    status: StatusCode,
    code: &'static str,
    end: End,
    /// Its place under the limits, held to the last byte.
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
