//! Response bodies: whole, streamed or huge, with the faults that break them.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::stream::TokenStream;
use super::wire::ConnectionControl;
use crate::faults::Faults;
use crate::server::dialect::dialect::EVENTS;
use crate::server::runtime::request_record::RequestRecord;

const FILLER: Bytes = Bytes::from_static(&[b'x'; 64 * 1024]);
const FILLER_HEAD: &[u8] = b"{\"text\":\"";
const FILLER_TAIL: &[u8] = b"\"}";

/// Source of a body's bytes.
#[derive(Debug)]
pub(crate) enum Content {
    /// Known bytes, until they are sent.
    Whole(Option<Bytes>),
    /// Events, sent as tokens are generated.
    Stream(Box<TokenStream>),
    /// What another content will be, once that is known.
    Deferred(Deferred),
    /// The body of a response from the router.
    Axum(axum::body::Body),
    /// A JSON object of a given size in bytes.
    Filler { size: u64, sent: u64 },
}

impl Content {
    pub(crate) fn filler(size: u64) -> Self {
        let least = (FILLER_HEAD.len() + FILLER_TAIL.len()) as u64;
        Self::Filler {
            size: size.max(least),
            sent: 0,
        }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Stream(stream) => stream.poll_event(cx),
            Self::Deferred(deferred) => {
                *self = ready!(deferred.0.as_mut().poll(cx));
                self.poll_chunk(cx)
            }
            Self::Axum(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame?.ok()?.into_data().ok()),
            Self::Filler { size, sent } => {
                let chunk = filler_chunk(*size, *sent);
                *sent += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                Poll::Ready(chunk)
            }
        }
    }

    fn remaining(&self) -> Option<u64> {
        match self {
            Self::Whole(bytes) => Some(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) | Self::Deferred(_) => None,
            Self::Axum(body) => body.size_hint().exact(),
            Self::Filler { size, sent } => Some(size - sent),
        }
    }
}

/// Content that is waited for.
pub(crate) struct Deferred(Pin<Box<dyn Future<Output = Content> + Send>>);

impl Deferred {
    pub(crate) fn new(content: impl Future<Output = Content> + Send + 'static) -> Self {
        Self(Box::pin(content))
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Deferred").finish_non_exhaustive()
    }
}

fn filler_chunk(size: u64, sent: u64) -> Option<Bytes> {
    let tail = FILLER_TAIL.len() as u64;
    match size - sent {
        0 => None,
        _ if sent == 0 => Some(Bytes::from_static(FILLER_HEAD)),
        left if left == tail => Some(Bytes::from_static(FILLER_TAIL)),
        left => Some(FILLER.slice(..(left - tail).min(FILLER.len() as u64) as usize)),
    }
}

/// Faults of one body.
#[derive(Debug)]
pub(crate) struct BodyFaults {
    close_at: Option<u64>,
    stall_at: Option<u64>,
    sent: u64,
    flushed: bool,
    chunk_delay: Duration,
    delay: Option<Pin<Box<Sleep>>>,
    close_after: Option<Arc<ConnectionControl>>,
}

impl BodyFaults {
    pub(crate) fn new(faults: &Faults, connection: &Arc<ConnectionControl>) -> Self {
        Self {
            close_at: faults.close_mid_body,
            stall_at: faults.stall_mid_body,
            sent: 0,
            flushed: false,
            chunk_delay: Duration::from_millis(faults.chunk_delay_ms),
            delay: None,
            close_after: faults.close_after_stream.then(|| Arc::clone(connection)),
        }
    }

    /// Waits until the next chunk may be sent; an error cuts the body off.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.close_at.is_some_and(|limit| self.sent >= limit) {
            if self.flushed {
                let cut = "cut off by close_mid_body";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, cut)));
            }
            self.flushed = true; // lets the bytes so far reach the socket first
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.stall_at.is_some_and(|limit| self.sent >= limit) {
            return Poll::Pending;
        }
        if !self.chunk_delay.is_zero() {
            let length = self.chunk_delay;
            let delay = self.delay.get_or_insert_with(|| Box::pin(sleep(length)));
            ready!(delay.as_mut().poll(cx));
        }
        Poll::Ready(Ok(()))
    }

    /// Counts a chunk, cut at the limit.
    fn cut(&mut self, mut chunk: Bytes) -> Bytes {
        self.delay = None;
        if let Some(limit) = [self.close_at, self.stall_at].into_iter().flatten().min() {
            chunk.truncate((limit - self.sent).min(chunk.len() as u64) as usize);
        }
        self.sent += chunk.len() as u64;
        chunk
    }
}

/// The body of every response.
#[derive(Debug)]
pub(crate) struct SimBody {
    content: Content,
    length: Option<u64>,
    faults: Option<Box<BodyFaults>>,
    record: Option<RequestRecord>,
}

impl SimBody {
    pub(crate) fn new(content: Content) -> Self {
        Self {
            length: content.remaining(),
            content,
            faults: None,
            record: None,
        }
    }

    /// The events of a stream that are known already.
    pub(crate) fn events(events: Bytes) -> Response<Self> {
        Self::from(events).respond(EVENTS)
    }

    /// A response of this content type.
    pub(crate) fn respond(self, content_type: HeaderValue) -> Response<Self> {
        let mut response = Response::new(self);
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }

    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.content, Content::Stream(_) | Content::Deferred(_))
    }

    pub(crate) fn set_faults(&mut self, mut faults: BodyFaults) {
        if !self.is_stream() {
            faults.close_after = None;
        }
        self.faults = Some(Box::new(faults));
    }

    /// Ends the record with the body; an empty body has already ended.
    pub(crate) fn set_record(&mut self, mut record: RequestRecord) {
        if self.is_end_stream() {
            record.finish();
        } else {
            self.record = Some(record);
        }
    }

    fn finish(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.finish();
        }
    }
}

impl From<Bytes> for SimBody {
    fn from(bytes: Bytes) -> Self {
        Self::new(Content::Whole((!bytes.is_empty()).then_some(bytes)))
    }
}

impl From<axum::body::Body> for SimBody {
    fn from(body: axum::body::Body) -> Self {
        Self::new(Content::Axum(body))
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if let Some(faults) = &mut this.faults
            && let Err(error) = ready!(faults.poll_ready(cx))
        {
            return Poll::Ready(Some(Err(error)));
        }
        let Some(mut chunk) = ready!(this.content.poll_chunk(cx)) else {
            this.finish();
            if let Some(connection) = this
                .faults
                .as_mut()
                .and_then(|faults| faults.close_after.take())
            {
                connection.close_after_write();
            }
            return Poll::Ready(None);
        };
        if let Some(faults) = &mut this.faults {
            chunk = faults.cut(chunk);
        }
        if let Some(length) = &mut this.length {
            *length -= chunk.len() as u64;
        }
        if this.is_end_stream() {
            this.finish();
        }
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.length == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
