//! The body of a reply together with its request, until both end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::connection_state::InProgress;
use super::request_record::RequestRecord;
use crate::proxy::{ReplyBody, ReplyError};
use crate::telemetry::ReplyEnd;

pub(super) type Polled = Poll<Option<Result<Frame<Bytes>, ReplyError>>>;

/// A request until its end.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) record: RequestRecord,
    pub(super) in_progress: InProgress,
}

/// A reply's body and the record of its request.
#[derive(Debug)]
pub(super) struct OpenReply {
    body: ReplyBody,
    /// `None` where the request goes on after its reply, as a tunnel.
    request: Option<OpenRequest>,
}

impl OpenReply {
    pub(super) fn new(body: ReplyBody, request: Option<OpenRequest>) -> Self {
        let mut reply = Self { body, request };
        if reply.body.is_end_stream() {
            reply.set_complete();
        }
        reply
    }

    pub(super) fn request(&self) -> Option<&OpenRequest> {
        self.request.as_ref()
    }

    /// The reply has been written to its end.
    pub(super) fn set_complete(&mut self) {
        if let Some(request) = &mut self.request {
            request.record.end = ReplyEnd::Complete;
        }
    }

    /// The next piece; its end, or what breaks it off, is noted in the record.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(OpenRequest { record, .. }) = &mut self.request else {
            return Poll::Ready(frame);
        };
        match &frame {
            Some(Err(error)) => {
                self.body.note_failure(error, &record.log);
                record.break_off(error);
            }
            // hyper stops asking once the announced length is reached.
            _ if frame.is_none() || self.body.is_complete() => {
                record.end = ReplyEnd::Complete;
                if let Some(code) = self.body.failure() {
                    record.fail_with(code);
                }
            }
            _ => {}
        }
        Poll::Ready(frame)
    }

    /// The client takes nothing of it.
    pub(super) fn give_up(mut self) {
        if let Some(OpenRequest { record, .. }) = &mut self.request {
            record.break_off(&ReplyError::ClientStalled);
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for OpenReply {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        self.get_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
