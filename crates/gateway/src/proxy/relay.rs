//! The reply on its way to the client: byte for byte, with everything that ends with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use routing::Lease;
use thiserror::Error;
use tokio::time::{Instant, Sleep};
use tracing::warn;

use crate::fleet::WorkerBody;
use crate::telemetry::ModelMetrics;
use crate::wire::WireError;

/// Why a reply ended before its end. The client sees its connection end abnormally.
#[derive(Debug, Error)]
pub(crate) enum ReplyError {
    /// The exchange with the worker failed.
    #[error(transparent)]
    Wire(#[from] WireError),
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
    silence: Silence,
    record: Option<Record>,
    /// Told at the next poll, so that what came before is flushed to the client first.
    failed: Option<ReplyError>,
    lease: Lease,
}

/// The reply that relays `response`.
pub(super) fn reply(
    response: Response<WorkerBody>,
    lease: Lease,
    longest_silence: Duration,
    record: Option<Record>,
) -> Response<ReplyBody> {
    response.map(|body| {
        let silence = Silence {
            limit: longest_silence,
            since: None,
            timer: None,
        };
        ReplyBody::Relay(Box::new(Relay {
            body,
            silence,
            record,
            failed: None,
            lease,
        }))
    })
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
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let error = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => error.into(),
            Poll::Ready(piece) => {
                self.silence.end();
                self.lease.first_byte();
                if let Some(record) = &mut self.record {
                    record.first_byte();
                }
                return Poll::Ready(piece.map(|piece| piece.map_err(ReplyError::from)));
            }
            Poll::Pending => ReplyError::Silent(ready!(self.silence.poll(cx))),
        };
        warn!(worker = %self.body.url(), %error, "reply cut short");
        if let Some(record) = &self.record {
            record.model.cut_replies.inc();
        }
        self.failed = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// How long the worker has sent nothing while the client was waiting.
///
/// The timer is set once and looked at again only when it fires, so a piece of body costs
/// no timer work.
#[derive(Debug)]
struct Silence {
    limit: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
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
pub(super) struct Record {
    model: Arc<ModelMetrics>,
    endpoint: usize,
    /// A streamed reply of which no byte has come yet.
    awaiting_first: bool,
    decided: Instant,
}

impl Record {
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

    fn first_byte(&mut self) {
        if self.awaiting_first {
            self.awaiting_first = false;
            if let Some(metrics) = self.model.endpoints.get(self.endpoint) {
                metrics.ttft.observe(self.decided.elapsed().as_secs_f64());
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(metrics) = self.model.endpoints.get(self.endpoint) {
            metrics
                .duration
                .observe(self.decided.elapsed().as_secs_f64());
        }
    }
}
