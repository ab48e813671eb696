//! The body of a reply: made here, or relayed from a worker byte for byte.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::keep_alive::KeepAlive;
use super::relay::Relay;
use super::relayed::Relayed;
use super::reply_error::ReplyError;
use super::samples::SampleStream;
use super::tunnel::Tunnel;
use crate::telemetry::RequestLog;

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// Made here.
    Fixed(Full<Bytes>),
    /// Made by a handler.
    Api(axum::body::Body),
    /// Relayed from a worker.
    Relay(Box<Relay>),
    /// Several streams of events, joined.
    Samples(Box<SampleStream>),
    /// None: the connection is switched to another protocol.
    Tunnel(Box<Tunnel>),
    /// The same, with comments in its silences.
    KeepAlive(Box<KeepAlive>),
}

impl From<Full<Bytes>> for ReplyBody {
    fn from(body: Full<Bytes>) -> Self {
        Self::Fixed(body)
    }
}

impl From<Box<Relay>> for ReplyBody {
    fn from(relay: Box<Relay>) -> Self {
        Self::Relay(relay)
    }
}

impl From<Relayed> for ReplyBody {
    fn from(body: Relayed) -> Self {
        match body {
            Relayed::One(relay) => Self::Relay(relay),
            Relayed::Samples(samples) => Self::Samples(samples),
            Relayed::Whole(body) => Self::Fixed(body),
        }
    }
}

impl ReplyBody {
    /// Whether a client that leaves now has had everything.
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Self::Fixed(body) => body.is_end_stream(),
            Self::Api(body) => body.is_end_stream(),
            Self::Relay(relay) => relay.is_complete(),
            Self::Samples(samples) => samples.is_complete(),
            Self::Tunnel(_) => true,
            Self::KeepAlive(relay) => relay.is_complete(),
        }
    }

    /// Notes which worker broke off.
    pub(crate) fn note_failure(&self, error: &ReplyError, log: &RequestLog) {
        match self {
            Self::Relay(relay) => relay.note_failure(error, log),
            Self::KeepAlive(relay) => relay.note_failure(error, log),
            // Which of several workers is in no line.
            Self::Samples(_) | Self::Fixed(_) | Self::Api(_) | Self::Tunnel(_) => {}
        }
    }

    /// The code of a failure that only the body reports, at its end.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        match self {
            Self::KeepAlive(relay) => relay.failure(),
            _ => None,
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
            Self::Api(body) => Pin::new(body).poll_frame(cx).map_err(ReplyError::Api),
            Self::Relay(relay) => Pin::new(relay).poll_frame(cx),
            Self::Samples(samples) => Pin::new(samples).poll_frame(cx),
            Self::Tunnel(_) => Poll::Ready(None),
            Self::KeepAlive(relay) => Pin::new(relay).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Fixed(body) => body.is_end_stream(),
            Self::Api(body) => body.is_end_stream(),
            Self::Relay(relay) => relay.is_end_stream(),
            Self::Samples(samples) => samples.is_end_stream(),
            Self::Tunnel(_) => true,
            Self::KeepAlive(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Fixed(body) => body.size_hint(),
            Self::Api(body) => body.size_hint(),
            Self::Relay(relay) => relay.size_hint(),
            Self::Samples(samples) => samples.size_hint(),
            Self::Tunnel(_) => SizeHint::with_exact(0),
            Self::KeepAlive(relay) => relay.size_hint(),
        }
    }
}
