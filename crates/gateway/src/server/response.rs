//! The reply as the client's connection reads it; its end is the end of the request's record.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame, SizeHint};

use super::in_progress::InProgress;
use super::request_record::{End, RequestRecord};
use crate::proxy::{ReplyBody, ReplyError};

/// A reply's body and the record of its request.
#[derive(Debug)]
pub(crate) struct Reply {
    body: ReplyBody,
    record: RequestRecord,
    _in_progress: InProgress,
}

impl Reply {
    /// A reply to a request of this method.
    pub(super) fn new(
        body: ReplyBody,
        method: &Method,
        mut record: RequestRecord,
        in_progress: InProgress,
    ) -> Self {
        // hyper does not read the body of a reply to HEAD.
        if *method == Method::HEAD || body.is_end_stream() {
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
