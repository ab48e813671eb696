//! What workers say to a request: one reply as it comes, or several joined.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::relay::Relay;
use super::reply_error::ReplyError;
use super::samples::SampleStream;
use crate::telemetry::RequestLog;

/// The body that a request has from workers.
#[derive(Debug)]
pub(super) enum Relayed {
    One(Box<Relay>),
    /// Several streams of events, joined.
    Samples(Box<SampleStream>),
    /// Several answers, joined.
    Whole(Full<Bytes>),
}

impl Relayed {
    /// Whether a client that leaves now has had everything.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::One(relay) => relay.is_complete(),
            Self::Samples(samples) => samples.is_complete(),
            Self::Whole(body) => body.is_end_stream(),
        }
    }

    /// Notes which worker broke off, where there is one.
    pub(super) fn note_failure(&self, error: &ReplyError, log: &RequestLog) {
        if let Self::One(relay) = self {
            relay.note_failure(error, log);
        }
    }

    /// Whether it is a stream of events.
    pub(super) fn has_events(&self) -> bool {
        match self {
            Self::One(relay) => relay.has_events(),
            Self::Samples(_) => true,
            Self::Whole(_) => false,
        }
    }

    /// Whether something may be put in: between two events of a stream that goes on.
    pub(super) fn accepts_event(&self) -> bool {
        match self {
            Self::One(relay) => relay.accepts_event(),
            // Its events come whole.
            Self::Samples(samples) => !samples.is_complete(),
            Self::Whole(_) => false,
        }
    }
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match self.get_mut() {
            Self::One(relay) => Pin::new(relay).poll_frame(cx),
            Self::Samples(samples) => Pin::new(samples).poll_frame(cx),
            Self::Whole(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::One(relay) => relay.is_end_stream(),
            Self::Samples(samples) => samples.is_end_stream(),
            Self::Whole(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::One(relay) => relay.size_hint(),
            Self::Samples(samples) => samples.size_hint(),
            Self::Whole(body) => body.size_hint(),
        }
    }
}
