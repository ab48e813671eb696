//! A body that holds its request's share of a worker, and what measures the request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use routing::Outcome;
use tracing::warn;

use super::reply_error::ReplyError;
use super::request_timer::RequestTimer;
use super::sse::EventStream;
use super::usage::UsageWatch;
use crate::balancer::{FirstByte, InFlight};

/// A worker's body under way. Dropping it, for whatever reason, ends the request.
#[derive(Debug)]
pub(crate) struct Leased<B> {
    body: EventStream<B>,
    status: StatusCode,
    /// A byte has passed.
    begun: bool,
    /// Given back already by a refusal that is the last answer after all.
    in_flight: Option<InFlight>,
    timer: Option<RequestTimer>,
    usage: Option<Box<UsageWatch>>,
}

impl<B> Leased<B>
where
    B: Body<Data = Bytes, Error = ReplyError> + Unpin,
{
    pub(super) fn new(
        body: EventStream<B>,
        status: StatusCode,
        in_flight: Option<InFlight>,
        timer: Option<RequestTimer>,
        usage: Option<Box<UsageWatch>>,
    ) -> Self {
        let mut leased = Self {
            body,
            status,
            begun: false,
            in_flight,
            timer,
            usage,
        };
        if leased.body.is_end_stream() {
            leased.finish();
        }
        leased
    }

    /// Whether it is a stream of events.
    pub(super) fn has_events(&self) -> bool {
        self.body.has_events()
    }

    /// Whether something may be put in: between two events of a stream that goes on.
    pub(super) fn accepts_event(&self) -> bool {
        self.body.accepts_event()
    }

    /// Whether a client that leaves now has had everything.
    pub(crate) fn is_complete(&self) -> bool {
        self.body.is_end_stream() || self.body.is_done()
    }

    /// The first byte has come.
    fn begin(&mut self) {
        self.begun = true;
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.first_byte(if self.body.has_events() {
                FirstByte::OfStream
            } else {
                FirstByte::OfWhole
            });
        }
        if let Some(timer) = &mut self.timer {
            timer.first_byte();
        }
    }

    /// The reply has come to its end.
    fn finish(&mut self) {
        if let Some(usage) = self.usage.take() {
            usage.learn();
        }
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.finish(Outcome::Answered(self.status.as_u16()));
        }
    }

    /// The reply has broken off.
    fn fail(&mut self) {
        let in_flight = self.in_flight.as_mut();
        let mut outcome = Outcome::Truncated;
        if let Some(error) = self.body.failure() {
            if matches!(error, ReplyError::PrefillFailed { .. }) {
                // This worker waited in vain.
                outcome = Outcome::Abandoned;
            }
            let worker = in_flight.as_ref().map(|it| it.worker.url().as_str());
            warn!(worker, %error, "reply cut short");
        }
        if let Some(in_flight) = in_flight {
            in_flight.finish(outcome);
        }
        if let Some(timer) = &self.timer {
            timer.truncated();
        }
    }
}

impl<B> Body for Leased<B>
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
        let failed_before = this.body.failure().is_some();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if !failed_before && this.body.failure().is_some() {
            this.fail();
            return polled;
        }
        let frame = ready!(polled);
        if let Some(Ok(frame)) = &frame {
            if let (Some(usage), Some(piece)) = (&mut this.usage, frame.data_ref()) {
                usage.pass(piece);
            }
            if !this.begun {
                this.begin();
            }
            // hyper asks no more once the announced length is reached, nor do clients after
            // [DONE].
            if this.is_complete() {
                this.finish();
            }
        } else if frame.is_none() {
            this.finish();
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
