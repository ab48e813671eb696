//! A body that may not fall silent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::reply_error::ReplyError;

/// A body that ends with an error when nothing has come for too long.
#[derive(Debug)]
pub(crate) struct Supervised<B> {
    body: B,
    idle: IdleTimeout,
}

/// How long nothing has come while the client was waiting.
///
/// The timer is set once and looked at again only when it fires, so a piece of body costs
/// no timer work.
#[derive(Debug)]
struct IdleTimeout {
    limit: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Supervised<B> {
    pub(super) fn new(body: B, limit: Duration) -> Self {
        Self {
            body,
            idle: IdleTimeout {
                limit,
                since: None,
                timer: None,
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
                let limit = ready!(self.idle.poll(cx));
                Poll::Ready(Some(Err(ReplyError::Idle(limit))))
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

impl IdleTimeout {
    /// Ready when the limit has passed.
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
