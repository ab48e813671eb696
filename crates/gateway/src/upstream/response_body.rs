//! The body of a worker's response, whatever the transport.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::error::UpstreamError;
use super::io::Io;
use super::{http1, http2};

/// Dropped before its end, it ends the request at the worker at once.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    inner: Inner,
    /// Rare, so it costs every other body one look at a pointer.
    ahead: Option<Box<Ahead>>,
}

#[derive(Debug)]
enum Inner {
    Http1(http1::Body),
    Http2(Box<http2::Body>),
}

/// What was read before it was asked for.
#[derive(Debug)]
struct Ahead {
    read: Bytes,
    /// The head said how long the body is.
    length_known: bool,
    /// How reading ended, returned after what was read.
    broken: Option<UpstreamError>,
}

impl ResponseBody {
    pub(super) fn http1(body: http1::Body) -> Self {
        Self {
            inner: Inner::Http1(body),
            ahead: None,
        }
    }

    pub(super) fn http2(body: http2::Body) -> Self {
        Self {
            inner: Inner::Http2(Box::new(body)),
            ahead: None,
        }
    }

    /// Reads ahead, up to about `most` bytes and for as long as `limit`; what was read is
    /// given out again. A body read to its end no longer holds a connection.
    pub(crate) async fn read_ahead(&mut self, most: usize, limit: Duration) -> &[u8] {
        let (mut read, mut broken) = (BytesMut::new(), None);
        let reading = async {
            while read.len() < most {
                match self.frame().await {
                    Some(Ok(frame)) => read.extend(frame.into_data().ok()),
                    Some(Err(error)) => {
                        broken = Some(error);
                        return;
                    }
                    None => return,
                }
            }
        };
        let _ = timeout(limit, reading).await;
        let read = read.freeze();
        let ahead = Ahead {
            read,
            length_known: true,
            broken,
        };
        &self.ahead.insert(Box::new(ahead)).read
    }

    /// Reads ahead until what was read `suffices`, or `most` bytes; what was read is given out
    /// again.
    ///
    /// # Errors
    /// When the body breaks off before its first byte.
    pub(crate) async fn read_until(
        &mut self,
        suffices: impl Fn(&[u8]) -> bool,
        most: usize,
    ) -> Result<(), UpstreamError> {
        let length_known = self.size_hint().exact().is_some();
        let mut read = Bytes::new();
        let mut broken = None;
        while read.len() < most && !suffices(&read) {
            match self.frame().await {
                Some(Ok(frame)) => read = joined(read, frame.into_data().unwrap_or_default()),
                Some(Err(_)) if read.is_empty() => return Err(UpstreamError::NoResponse),
                Some(Err(error)) => {
                    broken = Some(error);
                    break;
                }
                None => break,
            }
        }
        self.ahead = Some(Box::new(Ahead {
            read,
            length_known,
            broken,
        }));
        Ok(())
    }

    /// Reads on behind what was read ahead until all of it `suffices`, for as long as `limit`.
    ///
    /// # Errors
    /// When the body breaks off before that.
    pub(crate) async fn read_on(
        &mut self,
        suffices: impl Fn(&[u8]) -> bool,
        most: usize,
        limit: Duration,
    ) -> Result<(), UpstreamError> {
        let length_known = self.size_hint().exact().is_some();
        let mut read = Bytes::new();
        let reading = async {
            while read.len() < most && !suffices(&read) {
                let Some(frame) = self.frame().await else {
                    break;
                };
                let frame = frame.map_err(|_| UpstreamError::NoResponse)?;
                let piece = frame.into_data().unwrap_or_default();
                read = joined(std::mem::take(&mut read), piece);
            }
            Ok::<_, UpstreamError>(())
        };
        timeout(limit, reading).await.unwrap_or(Ok(()))?;
        self.ahead = Some(Box::new(Ahead {
            read,
            length_known,
            broken: None,
        }));
        Ok(())
    }

    /// Whether it broke off while it was read ahead.
    pub(crate) fn broke_ahead(&self) -> bool {
        self.ahead.as_ref().is_some_and(|it| it.broken.is_some())
    }

    /// What has been read ahead.
    pub(crate) fn ahead(&self) -> Option<&[u8]> {
        self.ahead.as_ref().map(|ahead| &*ahead.read)
    }

    /// The stream that the worker has switched to another protocol, after a 101, with the bytes
    /// of it that came already.
    ///
    /// # Errors
    /// When the response has come to an end already.
    pub(crate) fn into_stream(self) -> Result<(Bytes, Io), UpstreamError> {
        let stream = match self.inner {
            Inner::Http1(inner) => inner.into_stream(),
            Inner::Http2(_) => None,
        };
        stream.ok_or(UpstreamError::Malformed("switched protocols and closed"))
    }

    /// What was read ahead, then how that ended.
    fn take_ahead(&mut self) -> Option<Result<Frame<Bytes>, UpstreamError>> {
        let mut ahead = self.ahead.take()?;
        let read = std::mem::take(&mut ahead.read);
        if read.is_empty() {
            return ahead.broken.map(Err);
        }
        self.ahead = ahead.broken.is_some().then_some(ahead);
        Some(Ok(Frame::data(read)))
    }
}

/// Both pieces; the first is nearly always empty, and nothing is copied then.
fn joined(first: Bytes, second: Bytes) -> Bytes {
    if first.is_empty() {
        return second;
    }
    [first, second].concat().into()
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let body = &mut *self;
        if body.ahead.is_some()
            && let Some(taken) = body.take_ahead()
        {
            return Poll::Ready(Some(taken));
        }
        let piece = match &mut body.inner {
            Inner::Http1(inner) => inner.poll_piece(cx),
            Inner::Http2(inner) => inner.poll_piece(cx),
        };
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        let is_end = match &self.inner {
            Inner::Http1(inner) => inner.is_end(),
            Inner::Http2(inner) => inner.is_end(),
        };
        is_end && self.ahead.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // A stream stays a stream, though all of it may have come already.
        if self.ahead.as_ref().is_some_and(|ahead| !ahead.length_known) {
            return SizeHint::default();
        }
        let ahead = self.ahead.as_ref().map_or(0, |ahead| ahead.read.len()) as u64;
        let left = match &self.inner {
            Inner::Http1(inner) => inner.size_hint(),
            Inner::Http2(inner) => inner.size_hint(),
        };
        left.exact()
            .map_or(left, |left| SizeHint::with_exact(ahead + left))
    }
}
