//! The body of a response that comes over HTTP/2.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, SizeHint};
use hyper::body::Incoming;

use super::connection::Stream;
use crate::upstream::error::UpstreamError;

/// Dropped before its end, it resets its stream, and the worker sees that at once.
#[derive(Debug)]
pub(in crate::upstream) struct Body {
    body: Incoming,
    /// Given back at the end.
    place: Option<Stream>,
}

impl Body {
    pub(super) fn new(body: Incoming, place: Stream) -> Self {
        let place = Some(place).filter(|_| !body.is_end_stream());
        Self { body, place }
    }

    /// Whether nothing is left of it.
    pub(in crate::upstream) fn is_end(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Bytes left, where the head said how many.
    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// The next piece. Trailers are left out, as over HTTP/1.1.
    pub(in crate::upstream) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    Err(_) => {}
                },
                Some(Err(error)) => {
                    self.place = None;
                    let error = UpstreamError::Truncated(error.to_string());
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.place = None;
                    return Poll::Ready(None);
                }
            }
        }
    }
}
