//! Requests to one worker, and the bodies of its replies.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

use super::Worker;
use crate::config::WorkerUrl;
use crate::wire::{Connection, Framing, RequestHead, UpstreamError};

/// An answer to one of the gateway's own questions larger than this is refused, bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// A worker's whole answer to a question of the gateway's own.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Worker {
    /// Sends a request; the reply's body is read only as far as it is asked for.
    pub(crate) async fn send(
        self: &Arc<Self>,
        lane: usize,
        head: &RequestHead,
        body: &Bytes,
    ) -> Result<Response<WorkerBody>, UpstreamError> {
        let exchange = self.connections.send(lane, head, body).await?;
        let head = exchange.head;
        let mut body = WorkerBody {
            worker: Arc::clone(self),
            lane,
            connection: Some(exchange.connection),
            framing: head.framing,
            keep_alive: head.keep_alive,
            ahead: None,
        };
        if body.framing == Framing::Done {
            body.finish();
        }
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        Ok(response)
    }

    /// Asks the worker something with its own key, and reads the whole answer. A body is JSON.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        lane: usize,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<Answer, UpstreamError> {
        let mut head = self.request_head(method, path);
        if let Some(bearer) = &self.config.load().bearer {
            head.header(&header::AUTHORIZATION, bearer);
        }
        if !body.is_empty() {
            let json = HeaderValue::from_static("application/json");
            head.header(&header::CONTENT_TYPE, &json);
        }
        let response = self.send(lane, &head.finish(body.len()), body).await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body
            .map_err(|error| UpstreamError::Truncated(error.to_string()))?
            .to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    /// A request head for this worker, so far with request line and `host`.
    pub(crate) fn request_head(&self, method: &Method, path: &str) -> RequestHead {
        RequestHead::new(
            method,
            self.url.prefix(),
            path,
            self.url.authority().as_str(),
        )
    }
}

/// The body of a worker's reply.
///
/// Read to its end, it gives the connection back to the pool; dropped before, it closes
/// it, and the worker sees the disconnect at once.
#[derive(Debug)]
pub(crate) struct WorkerBody {
    worker: Arc<Worker>,
    lane: usize,
    connection: Option<Connection>,
    framing: Framing,
    keep_alive: bool,
    /// Rare, so it costs every other body one look at a pointer.
    ahead: Option<Box<Ahead>>,
}

/// What was read before anybody asked for it.
#[derive(Debug)]
struct Ahead {
    read: Bytes,
    /// How reading ended, told after what was read.
    broken: Option<UpstreamError>,
}

impl WorkerBody {
    /// The worker it comes from.
    pub(crate) fn url(&self) -> &WorkerUrl {
        &self.worker.url
    }

    /// Reads ahead, up to about `most` bytes and for as long as `patience`; what was read is
    /// given out again. A body read to its end no longer holds a connection.
    pub(crate) async fn read_ahead(&mut self, most: usize, patience: Duration) -> &[u8] {
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
        let _ = timeout(patience, reading).await;
        let read = read.freeze();
        &self.ahead.insert(Box::new(Ahead { read, broken })).read
    }

    /// Gives out what was read ahead, then how that ended.
    fn give_ahead(&mut self) -> Option<Result<Frame<Bytes>, UpstreamError>> {
        let mut ahead = self.ahead.take()?;
        let read = std::mem::take(&mut ahead.read);
        if read.is_empty() {
            return ahead.broken.map(Err);
        }
        self.ahead = ahead.broken.is_some().then_some(ahead);
        Some(Ok(Frame::data(read)))
    }

    fn finish(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.keep_alive
        {
            self.worker.connections.keep(self.lane, connection);
        }
    }
}

impl Body for WorkerBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let body = &mut *self;
        if body.ahead.is_some()
            && let Some(given) = body.give_ahead()
        {
            return Poll::Ready(Some(given));
        }
        let Some(connection) = &mut body.connection else {
            return Poll::Ready(None);
        };
        let piece = ready!(connection.poll_piece(cx, &mut body.framing));
        match &piece {
            Some(Err(_)) => body.connection = None,
            _ if body.framing == Framing::Done => body.finish(),
            _ => {}
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.framing == Framing::Done && self.ahead.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.ahead.as_ref().map_or(0, |ahead| ahead.read.len()) as u64;
        match self.framing {
            Framing::Done => SizeHint::with_exact(ahead),
            Framing::Length(left) => SizeHint::with_exact(ahead + left),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }
}
