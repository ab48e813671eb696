//! Server-sent events: a stream that breaks off between two of them ends with an event that
//! says why.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http_body::{Body, Frame, SizeHint};

use super::events::EventBoundary;
use super::reply_error::ReplyError;
use crate::endpoint::Vendor;
use crate::error::final_event;

/// Whether a body with these headers is a stream of events that can be looked into.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.as_bytes().get(..17));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// A body that may be a stream of events.
#[derive(Debug)]
pub(super) struct EventStream<B> {
    body: B,
    /// `None` for a body of another kind.
    events: Option<EventBoundary>,
    /// Whose clients read its last event.
    vendor: Vendor,
    failure: Failure,
}

/// How far the end of a body that broke off has come.
#[derive(Debug, Default)]
enum Failure {
    #[default]
    None,
    /// Returned only once what came before has been flushed to the client.
    Unflushed(ReplyError),
    Flushed(ReplyError),
    Returned,
}

impl Failure {
    /// The end of a body that has broken off.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match std::mem::replace(self, Self::Returned) {
            Self::None | Self::Returned => Poll::Ready(None),
            Self::Unflushed(error) => {
                *self = Self::Flushed(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Flushed(error) => Poll::Ready(Some(Err(error))),
        }
    }
}

impl<B: Body> EventStream<B> {
    /// The body of a successful reply with these headers: a stream of events, if they say so
    /// and the body may end in one more.
    pub(super) fn of(body: B, headers: &HeaderMap, vendor: Vendor) -> Self {
        let open_ended = body.size_hint().exact().is_none();
        let events = (is_event_stream(headers) && open_ended).then(EventBoundary::default);
        Self {
            events,
            vendor,
            ..Self::opaque(body)
        }
    }

    /// A body that is no stream of events.
    pub(super) fn opaque(body: B) -> Self {
        Self {
            body,
            events: None,
            vendor: Vendor::default(),
            failure: Failure::None,
        }
    }

    /// Whether it is a stream of events.
    pub(super) fn has_events(&self) -> bool {
        self.events.is_some()
    }

    /// Whether something may be put in: between two events of a stream that goes on.
    pub(super) fn accepts_event(&self) -> bool {
        let events = self.events.as_ref();
        matches!(self.failure, Failure::None) && events.is_some_and(EventBoundary::accepts_event)
    }

    /// The stream has said that it is complete, whatever may still come.
    pub(super) fn is_done(&self) -> bool {
        self.events.as_ref().is_some_and(EventBoundary::is_done)
    }

    /// Why it broke off, from that moment until the error is returned.
    pub(super) fn failure(&self) -> Option<&ReplyError> {
        match &self.failure {
            Failure::Unflushed(error) | Failure::Flushed(error) => Some(error),
            Failure::None | Failure::Returned => None,
        }
    }
}

impl<B> Body for EventStream<B>
where
    B: Body<Data = Bytes, Error = ReplyError> + Unpin,
{
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let this = &mut *self;
        if !matches!(this.failure, Failure::None) {
            return this.failure.poll(cx);
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match polled {
            Poll::Ready(Some(Err(error))) => {
                let last = this.accepts_event();
                let last = last.then(|| final_event(this.vendor, &error));
                this.failure = Failure::Unflushed(error);
                match last {
                    Some(event) => Poll::Ready(Some(Ok(Frame::data(event)))),
                    None => self.poll_frame(cx),
                }
            }
            polled => {
                if let (Poll::Ready(Some(Ok(frame))), Some(events)) = (&polled, &mut this.events)
                    && let Some(data) = frame.data_ref()
                {
                    events.pass(data);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
