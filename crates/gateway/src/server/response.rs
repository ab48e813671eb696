//! The reply as the client's connection reads it; its end is the end of the request's record.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Method, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::connection_state::InProgress;
use super::request_record::RequestRecord;
use super::watched_reply::ReplySlot;
use crate::proxy::{ReplyBody, ReplyError};
use crate::telemetry::ReplyEnd;

/// A reply's body and the record of its request.
#[derive(Debug)]
pub(crate) struct Reply {
    body: ReplySlot,
    /// `None` where the request goes on after its reply, as a tunnel.
    request: Option<OpenRequest>,
}

/// A request until its end.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) record: RequestRecord,
    pub(super) in_progress: InProgress,
}

impl Reply {
    /// A reply over a protocol of this version.
    pub(super) fn new(body: ReplyBody, version: Version, mut request: OpenRequest) -> Self {
        if body.is_end_stream() {
            request.record.end = ReplyEnd::Complete;
        }
        let body = if version == Version::HTTP_2 {
            ReplySlot::watched(body, request.in_progress.state())
        } else {
            ReplySlot::Own(body)
        };
        Self {
            body,
            request: Some(request),
        }
    }

    /// A reply whose request goes on.
    pub(super) fn switching() -> Self {
        let body = ReplyBody::from(Full::default());
        Self {
            body: ReplySlot::Own(body),
            request: None,
        }
    }

    /// The same for a request that was a HEAD: its body is not sent.
    pub(super) fn without_body(mut self) -> Self {
        if let Some(request) = &mut self.request {
            request.record.end = ReplyEnd::Complete;
        }
        self
    }
}

/// Leaves the body out of a reply to a HEAD over HTTP/2, where hyper would send it, and keeps
/// what the head says of its length (RFC 9110 §9.3.2).
pub(super) fn strip_body(
    body: ReplyBody,
    method: &Method,
    version: Version,
    headers: &mut HeaderMap,
) -> ReplyBody {
    if *method != Method::HEAD || version != Version::HTTP_2 {
        return body;
    }
    if let Some(length) = body.size_hint().exact() {
        headers
            .entry(header::CONTENT_LENGTH)
            .or_insert(length.into());
    }
    Full::default().into()
}

impl Body for Reply {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let this = &mut *self;
        let polled = this.body.poll_frame(cx);
        let Some(OpenRequest {
            record,
            in_progress,
        }) = &mut this.request
        else {
            return polled;
        };
        if matches!(this.body, ReplySlot::Own(_)) {
            in_progress.state().reply_polled(polled.is_ready());
        }
        let frame = ready!(polled);
        match &frame {
            Some(Err(error)) => {
                this.body.note_failure(error, &record.log);
                record.break_off(error);
            }
            // hyper stops asking once the announced length is reached.
            _ if frame.is_none() || this.body.is_complete() => {
                record.end = ReplyEnd::Complete;
                if let Some(code) = this.body.failure() {
                    record.fail_with(code);
                }
            }
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
