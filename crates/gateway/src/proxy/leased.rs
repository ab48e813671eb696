//! A body that holds its request's share of a worker, and what measures the request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use memchr::memmem;
use routing::Outcome;
use tokio::time::Instant;

use super::reply_error::ReplyError;
use super::request_timer::RequestTimer;
use super::sse::EventStream;
use super::usage::UsageWatch;
use crate::balancer::{FirstByte, InFlight};
use crate::telemetry::RequestLog;

/// A worker's body under way. Dropping it, for whatever reason, ends the request.
#[derive(Debug)]
pub(crate) struct Leased<B> {
    body: EventStream<B>,
    status: StatusCode,
    /// A byte has passed.
    begun: bool,
    /// A client that leaves now has had everything.
    complete: bool,
    /// Given back already by a refusal that is the last answer after all.
    in_flight: Option<Box<InFlight>>,
    timer: Option<RequestTimer>,
    usage: UsageWatch,
}

/// Whether a piece of a stream that begins with a comment has more than that.
fn has_data(piece: &[u8]) -> bool {
    memmem::find(piece, b"\ndata:").is_some() || memmem::find(piece, b"\rdata:").is_some()
}

impl<B> Leased<B>
where
    B: Body<Data = Bytes, Error = ReplyError> + Unpin,
{
    pub(super) fn new(
        body: EventStream<B>,
        status: StatusCode,
        in_flight: Option<Box<InFlight>>,
        timer: Option<RequestTimer>,
        mut usage: UsageWatch,
    ) -> Self {
        usage.begin(status);
        let mut leased = Self {
            body,
            status,
            begun: false,
            complete: false,
            in_flight,
            timer,
            usage,
        };
        if leased.body.is_end_stream() {
            leased.complete = true;
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

    /// Notes which worker broke off.
    pub(super) fn note_failure(&self, error: &ReplyError, log: &RequestLog) {
        if let Some(in_flight) = &self.in_flight {
            let worker = &in_flight.worker;
            let info = worker.endpoint.model_info.load();
            let worker = &worker.metrics().name;
            log.attempt_failed(outcome_of(error), worker, &info.metrics.name);
        }
    }

    /// Whether a client that leaves now has had everything.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The first byte has come; returns when, if it is that of a stream.
    fn begin(&mut self) -> Option<Instant> {
        self.begun = true;
        let now = self.has_events().then(Instant::now);
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.first_byte(now.map_or(FirstByte::OfWhole, FirstByte::OfStream));
            if self.status.is_success() {
                in_flight.prompt_computed();
            }
        }
        now
    }

    /// A piece of the reply has come, perhaps the first event of a stream; `now` is when, if that
    /// is known.
    fn note_event(&mut self, piece: &[u8], now: Option<Instant>) {
        // A comment says no more than that the worker is there.
        if let Some(timer) = &mut self.timer
            && timer.awaits_event()
            && self.status.is_success()
            && (!piece.starts_with(b":") || has_data(piece))
        {
            let wait = timer.first_event(now.unwrap_or_else(Instant::now));
            if let (Some(wait), Some(in_flight)) = (wait, &self.in_flight) {
                in_flight.worker.totals.first_event(wait);
            }
        }
    }

    /// The reply has come to its end.
    fn finish(&mut self) {
        if let Some(timer) = self.timer.take() {
            let (usage, events) = self.usage.finish(self.body.has_events());
            if let (Some(in_flight), Some(usage)) = (&mut self.in_flight, usage)
                && let Some(report) = self.usage.cache_report(usage)
            {
                in_flight.report_cached(report);
            }
            let tokens = usage.and_then(|usage| usage.completion).unwrap_or(events);
            let now = Instant::now();
            timer.complete(now, usage, events);
            if let Some(in_flight) = &mut self.in_flight {
                in_flight.last_token(now, tokens);
            }
        }
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.finish(Outcome::Answered(self.status.as_u16()));
        }
    }

    /// The reply has broken off.
    fn fail(&mut self) {
        let in_flight = self.in_flight.as_mut();
        let outcome = self.body.failure().map_or(Outcome::Truncated, outcome_of);
        if let Some(in_flight) = in_flight {
            in_flight.finish(outcome);
        }
        if let Some(timer) = &self.timer {
            timer.truncated();
        }
    }
}

/// What the end of a reply says of the worker.
fn outcome_of(error: &ReplyError) -> Outcome {
    match error {
        // This worker waited in vain.
        ReplyError::PrefillFailed { .. } => Outcome::Abandoned,
        _ => Outcome::Truncated,
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
        // hyper asks no more once the announced length is reached, nor do clients after [DONE].
        let complete = this.body.is_end_stream() || this.body.is_done();
        this.complete = complete;
        if let Some(Ok(frame)) = &frame {
            let now = if this.begun { None } else { this.begin() };
            if let Some(piece) = frame.data_ref() {
                this.note_event(piece, now);
                if complete {
                    this.usage.pass_last(piece);
                } else {
                    this.usage.pass(piece);
                }
            }
            if complete {
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
