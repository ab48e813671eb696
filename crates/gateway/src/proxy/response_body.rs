//! The reply on its way to the client: byte for byte, with everything that ends with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use routing::Outcome;
use thiserror::Error;
use tokio::time::{Instant, Sleep};
use tracing::warn;

use crate::error::final_event;
use crate::fleet::{InFlight, Selection, WorkerBody};
use crate::telemetry::ModelMetrics;
use crate::wire::UpstreamError;

/// Why a reply ended before its end. The client sees its connection end abnormally.
#[derive(Debug, Error)]
pub(crate) enum ReplyError {
    /// The exchange with the worker failed.
    #[error(transparent)]
    Wire(#[from] UpstreamError),
    /// The worker fell silent amid the body.
    #[error("worker sent nothing for {} s amid the body", .0.as_secs())]
    Silent(Duration),
}

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// Made here.
    Fixed(Full<Bytes>),
    /// Relayed from a worker.
    Relay(Box<Relay>),
}

impl From<Full<Bytes>> for ReplyBody {
    fn from(body: Full<Bytes>) -> Self {
        Self::Fixed(body)
    }
}

/// A worker's body under way. Dropping it, for whatever reason, ends the request.
#[derive(Debug)]
pub(crate) struct Relay {
    body: WorkerBody,
    silence: IdleTimeout,
    record: Option<RequestTimer>,
    events: Option<EventBoundary>,
    /// A byte has passed.
    begun: bool,
    /// Told only once what came before has been flushed to the client.
    failed: Option<ReplyError>,
    flushed: bool,
    status: StatusCode,
    /// Given back already by a refusal that is the last answer after all.
    in_flight: Option<InFlight>,
}

/// A stream of server-sent events: one that breaks off between two of them can still tell why.
/// Before the first one the tail is zero.
#[derive(Debug, Default)]
struct EventBoundary {
    /// The last two bytes; two line feeds end an event.
    tail: [u8; 2],
    /// The stream has said that it is complete.
    done: bool,
}

impl EventBoundary {
    /// The events of a reply, if it is made of such and may end in one more.
    fn of(status: StatusCode, headers: &HeaderMap, body: &WorkerBody) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.as_bytes();
        let events = kind.get(..17)?.eq_ignore_ascii_case(b"text/event-stream");
        let plain = !headers.contains_key(header::CONTENT_ENCODING);
        let open_ended = body.size_hint().exact().is_none();
        (events && plain && open_ended && status.is_success()).then(Self::default)
    }

    fn pass(&mut self, piece: &[u8]) {
        self.done |= piece.ends_with(b"[DONE]\n\n");
        match piece {
            [.., one, two] => self.tail = [*one, *two],
            [one] => self.tail = [self.tail[1], *one],
            [] => {}
        }
    }

    fn accepts_final_event(&self) -> bool {
        !self.done && matches!(&self.tail, b"\n\n" | b"\0\0")
    }
}

/// The reply that relays `response`.
pub(super) fn reply(
    response: Response<WorkerBody>,
    in_flight: Option<InFlight>,
    longest_silence: Duration,
    record: Option<RequestTimer>,
) -> Response<ReplyBody> {
    let (parts, body) = response.into_parts();
    let mut relay = Relay {
        silence: IdleTimeout {
            limit: longest_silence,
            since: None,
            timer: None,
        },
        record,
        events: EventBoundary::of(parts.status, &parts.headers, &body),
        begun: false,
        failed: None,
        flushed: false,
        status: parts.status,
        in_flight,
        body,
    };
    if relay.body.is_end_stream() {
        relay.end();
    }
    Response::from_parts(parts, ReplyBody::Relay(Box::new(relay)))
}

impl ReplyBody {
    /// Whether a client that leaves now has had everything.
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Self::Fixed(body) => body.is_end_stream(),
            Self::Relay(relay) => relay.body.is_end_stream() || relay.is_done(),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match self.get_mut() {
            Self::Fixed(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => Poll::Ready(frame.and_then(Result::ok).map(Ok)),
                Poll::Pending => Poll::Pending,
            },
            Self::Relay(relay) => relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Fixed(body) => body.is_end_stream(),
            Self::Relay(relay) => relay.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Fixed(body) => body.size_hint(),
            Self::Relay(relay) => relay.body.size_hint(),
        }
    }
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        if self.failed.is_some() && !std::mem::replace(&mut self.flushed, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let error = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(piece))) => {
                self.pass(&piece);
                return Poll::Ready(Some(Ok(piece)));
            }
            Poll::Ready(None) => {
                self.end();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => error.into(),
            Poll::Pending => ReplyError::Silent(ready!(self.silence.poll(cx))),
        };
        if let Some(event) = self.fail(error) {
            return Poll::Ready(Some(Ok(Frame::data(event))));
        }
        self.poll(cx)
    }

    /// A piece passes.
    fn pass(&mut self, piece: &Frame<Bytes>) {
        self.silence.end();
        if !self.begun {
            self.begin();
        }
        if let (Some(events), Some(data)) = (&mut self.events, piece.data_ref()) {
            events.pass(data);
        }
        // hyper asks no more once the announced length is reached, nor do clients after [DONE].
        if self.body.is_end_stream() || self.is_done() {
            self.end();
        }
    }

    /// The first byte has come.
    fn begin(&mut self) {
        self.begun = true;
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.first_byte(self.events.is_some());
        }
        if let Some(record) = &mut self.record {
            record.first_byte();
        }
    }

    /// The stream has said that it is complete, whatever may still come.
    fn is_done(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.done)
    }

    /// The reply has come to its end.
    fn end(&mut self) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.finish(Outcome::Answered(self.status.as_u16()));
        }
    }

    /// The reply has broken off. A last event for the client, where there may be one.
    fn fail(&mut self, error: ReplyError) -> Option<Bytes> {
        warn!(worker = %self.body.url(), %error, "reply cut short");
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.finish(Outcome::Truncated);
        }
        if let Some(record) = &self.record {
            record.model.cut_replies.inc();
        }
        let events = self
            .events
            .take()
            .filter(EventBoundary::accepts_final_event);
        let last = events.map(|_| final_event(&error));
        self.failed = Some(error);
        last
    }
}

/// How long the worker has sent nothing while the client was waiting.
///
/// The timer is set once and looked at again only when it fires, so a piece of body costs
/// no timer work.
#[derive(Debug)]
struct IdleTimeout {
    limit: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl IdleTimeout {
    fn end(&mut self) {
        self.since = None;
    }

    /// Ready when the limit has passed in silence.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.limit)));
        while timer.as_mut().poll(cx).is_ready() {
            match since.checked_add(self.limit) {
                Some(end) if end <= Instant::now() => return Poll::Ready(self.limit),
                Some(end) => timer.as_mut().reset(end),
                None => return Poll::Pending,
            }
        }
        Poll::Pending
    }
}

/// What is measured of a request from the routing decision to its end.
#[derive(Debug)]
pub(super) struct RequestTimer {
    model: Arc<ModelMetrics>,
    endpoint: usize,
    /// A streamed reply of which no byte has come yet.
    awaiting_first: bool,
    decided: Instant,
}

impl RequestTimer {
    pub(super) fn new(
        model: Arc<ModelMetrics>,
        endpoint: usize,
        streaming: bool,
        decided: Instant,
    ) -> Self {
        Self {
            model,
            endpoint,
            awaiting_first: streaming,
            decided,
        }
    }

    /// The request goes to this worker now.
    pub(super) fn follow(&mut self, selection: &Selection) {
        let identity = selection.in_flight.worker.model_info.load();
        identity.metrics.selected(selection.policy);
        if !Arc::ptr_eq(&self.model, &identity.metrics) {
            self.model = Arc::clone(&identity.metrics);
        }
    }

    fn first_byte(&mut self) {
        if self.awaiting_first {
            self.awaiting_first = false;
            if let Some(metrics) = self.model.endpoint(self.endpoint) {
                metrics.ttft.observe(self.decided.elapsed().as_secs_f64());
            }
        }
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        if let Some(metrics) = self.model.endpoint(self.endpoint) {
            metrics
                .duration
                .observe(self.decided.elapsed().as_secs_f64());
        }
    }
}
