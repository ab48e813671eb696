//! The reply as the client's connection reads it; its end is the end of the request's record.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::response::Parts;
use http::{Method, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::connection_state::ConnectionState;
use super::open_reply::{OpenReply, OpenRequest};
use super::watched_reply::WatchedReply;
use crate::proxy::{ReplyBody, ReplyError};

/// A reply's body and the record of its request.
#[derive(Debug)]
pub(crate) struct Reply(Slot);

/// Where a reply is kept.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one: no allocation"
)]
enum Slot {
    /// It ends with its connection.
    Own(OpenReply),
    /// The watchdog may end it and leave the connection to others.
    Watched(Arc<WatchedReply>),
    /// Its connection has it, and may write pieces of it past hyper.
    Direct(DirectHandle),
}

/// Ends the connection's direct reply when hyper has no more use for it.
#[derive(Debug)]
struct DirectHandle(Arc<ConnectionState>);

impl Drop for DirectHandle {
    fn drop(&mut self) {
        self.0.direct.end();
    }
}

/// Whether hyper frames a body with this head in chunks, one piece like the other, so that others
/// may write some.
pub(super) fn is_chunked(
    body: &ReplyBody,
    method: &Method,
    version: Version,
    head: &Parts,
) -> bool {
    let framed = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TRAILER,
    ];
    version == Version::HTTP_11
        && head.status == StatusCode::OK
        && !matches!(*method, Method::HEAD | Method::CONNECT)
        && !body.is_end_stream()
        && body.size_hint().exact().is_none()
        && !framed.iter().any(|name| head.headers.contains_key(name))
}

impl Reply {
    /// A reply over a protocol of this version.
    pub(super) fn new(body: ReplyBody, version: Version, request: OpenRequest) -> Self {
        if version == Version::HTTP_2 && !body.is_end_stream() {
            let connection = Arc::clone(request.in_progress.state());
            let open = OpenReply::new(body, Some(request));
            return Self(Slot::Watched(WatchedReply::new(open, &connection)));
        }
        Self(Slot::Own(OpenReply::new(body, Some(request))))
    }

    /// A reply that [`is_chunked`].
    pub(super) fn chunked(body: ReplyBody, request: OpenRequest) -> Self {
        let connection = Arc::clone(request.in_progress.state());
        let open = OpenReply::new(body, Some(request));
        if !connection.direct.is_enabled() {
            return Self(Slot::Own(open));
        }
        connection.direct.begin(Box::new(open));
        Self(Slot::Direct(DirectHandle(connection)))
    }

    /// A reply whose request goes on.
    pub(super) fn switching() -> Self {
        let body = ReplyBody::from(Full::default());
        Self(Slot::Own(OpenReply::new(body, None)))
    }

    /// The same for a request that was a HEAD: its body is not sent.
    pub(super) fn without_body(mut self) -> Self {
        match &mut self.0 {
            Slot::Own(open) => open.set_complete(),
            Slot::Watched(watched) => watched.set_complete(),
            // A HEAD has no body.
            Slot::Direct(_) => {}
        }
        self
    }
}

/// Leaves the body out of a reply to a HEAD over HTTP/2, where hyper would send it, and keeps
/// what the head says of its length (RFC 9110 §9.3.2).
pub(super) fn strip_body(
    body: ReplyBody,
    method: &Method,
    version: Version,
    headers: &mut HeaderMap,
) -> ReplyBody {
    if *method != Method::HEAD || version != Version::HTTP_2 {
        return body;
    }
    if let Some(length) = body.size_hint().exact() {
        headers
            .entry(header::CONTENT_LENGTH)
            .or_insert(length.into());
    }
    Full::default().into()
}

impl Body for Reply {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match &mut self.0 {
            Slot::Own(open) => {
                let polled = open.poll_frame(cx);
                if let Some(request) = open.request() {
                    let connection = request.in_progress.state();
                    connection.reply_polled(polled.is_ready());
                }
                polled
            }
            Slot::Watched(watched) => watched.poll_frame(cx),
            Slot::Direct(DirectHandle(connection)) => {
                // The client has not taken the last piece yet.
                if connection.direct.is_open() && connection.write_pending() {
                    return Poll::Pending;
                }
                let polled = connection.direct.poll_frame(cx);
                connection.reply_polled(polled.is_ready());
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Slot::Own(open) => open.is_end_stream(),
            Slot::Watched(watched) => watched.read(OpenReply::is_end_stream),
            Slot::Direct(DirectHandle(connection)) => connection.direct.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Slot::Own(open) => open.size_hint(),
            Slot::Watched(watched) => watched.read(OpenReply::size_hint),
            Slot::Direct(DirectHandle(connection)) => connection.direct.size_hint(),
        }
    }
}
