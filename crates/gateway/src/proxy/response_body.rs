//! The body of a reply: made here, or relayed from a worker byte for byte.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::idle_timeout::{Supervised, Supervision};
use super::leased::Leased;
use super::reply_error::ReplyError;
use super::request_timer::RequestTimer;
use super::sse::EventStream;
use super::tunnel::Tunnel;
use crate::balancer::InFlight;
use crate::endpoint::Vendor;
use crate::upstream::ResponseBody;

/// A worker's body, its idle time limited, its events watched, its share of the worker held.
type Relay = Leased<Supervised<ResponseBody>>;

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// Made here.
    Fixed(Full<Bytes>),
    /// Made by a handler.
    Api(axum::body::Body),
    /// Relayed from a worker.
    Relay(Box<Relay>),
    /// None: the connection is switched to another protocol.
    Tunnel(Box<Tunnel>),
}

impl From<Full<Bytes>> for ReplyBody {
    fn from(body: Full<Bytes>) -> Self {
        Self::Fixed(body)
    }
}

/// The reply that relays `response`.
pub(super) fn relay(
    response: Response<ResponseBody>,
    supervision: Supervision,
    in_flight: Option<InFlight>,
    timer: Option<RequestTimer>,
    vendor: Vendor,
) -> Response<ReplyBody> {
    let (parts, body) = response.into_parts();
    let body = Supervised::new(body, supervision);
    let body = if parts.status.is_success() {
        EventStream::of(body, &parts.headers, vendor)
    } else {
        EventStream::opaque(body)
    };
    let relay = Leased::new(body, parts.status, in_flight, timer);
    Response::from_parts(parts, ReplyBody::Relay(Box::new(relay)))
}

impl ReplyBody {
    /// Whether a client that leaves now has had everything.
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Self::Fixed(body) => body.is_end_stream(),
            Self::Api(body) => body.is_end_stream(),
            Self::Relay(relay) => relay.is_complete(),
            Self::Tunnel(_) => true,
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
            Self::Tunnel(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Fixed(body) => body.is_end_stream(),
            Self::Api(body) => body.is_end_stream(),
            Self::Relay(relay) => relay.is_end_stream(),
            Self::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Fixed(body) => body.size_hint(),
            Self::Api(body) => body.size_hint(),
            Self::Relay(relay) => relay.size_hint(),
            Self::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}
