//! A body, or the bytes of an upgraded connection, that may not fall silent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::reply_error::ReplyError;
use crate::fleet::{Fleet, Worker, request_probe};

/// How often the worker of a silent body is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A body that ends with an error when nothing has come for too long, or when its worker turns
/// out to be gone meanwhile.
#[derive(Debug)]
pub(crate) struct Supervised<B> {
    body: B,
    idle: IdleTimeout,
}

/// What is known of the worker that a body comes from.
#[derive(Debug)]
pub(super) struct Supervision {
    pub(super) fleet: Arc<Fleet>,
    pub(super) worker: Arc<Worker>,
    /// The silence after which the worker is probed.
    pub(super) probe_after: Duration,
    /// The silence that ends the body.
    pub(super) limit: Duration,
}

/// How long nothing has come while the client was waiting.
///
/// The timer is set once and looked at again only when it fires, so a piece of body costs
/// no timer work.
#[derive(Debug)]
struct IdleTimeout {
    supervision: Supervision,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// What the timer wakes.
    waker: Option<Waker>,
}

impl<B> Supervised<B> {
    pub(super) fn new(body: B, supervision: Supervision) -> Self {
        Self {
            body,
            idle: IdleTimeout {
                supervision,
                since: None,
                timer: None,
                waker: None,
            },
        }
    }
}

impl<B> Body for Supervised<B>
where
    B: Body<Data = Bytes> + Unpin,
    ReplyError: From<B::Error>,
{
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.idle.since = None;
                Poll::Ready(frame.map(|frame| frame.map_err(ReplyError::from)))
            }
            Poll::Pending => {
                let why = ready!(self.idle.poll(cx));
                Poll::Ready(Some(Err(why)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Supervised<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.body).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                self.idle.since = None;
                Poll::Ready(read)
            }
            Poll::Pending => {
                let why = ready!(self.idle.poll(cx));
                Poll::Ready(Err(io::Error::other(why)))
            }
        }
    }
}

impl IdleTimeout {
    /// Ready when the silence ends the body.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ReplyError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let first = self.supervision.probe_after.min(self.supervision.limit);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(first)));
        let is_set = self.waker.as_ref();
        if is_set.is_some_and(|waker| waker.will_wake(cx.waker())) && !timer.is_elapsed() {
            return Poll::Pending;
        }
        while timer.as_mut().poll(cx).is_ready() {
            match self.supervision.look(since) {
                Ok(next) => timer.as_mut().reset(next),
                Err(why) => return Poll::Ready(why),
            }
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Supervision {
    /// Looks at a worker that has been silent since then; gives the time of the next look.
    fn look(&self, since: Instant) -> Result<Instant, ReplyError> {
        let now = Instant::now();
        let silent = now.saturating_duration_since(since);
        if silent >= self.limit {
            return Err(ReplyError::Idle(self.limit));
        }
        let end = since + self.limit;
        if silent < self.probe_after {
            return Ok((since + self.probe_after).min(end));
        }
        if self.worker.is_lost() {
            return Err(ReplyError::WorkerLost);
        }
        request_probe(&self.fleet, &self.worker.endpoint);
        Ok((now + CHECK_INTERVAL).min(end))
    }
}
