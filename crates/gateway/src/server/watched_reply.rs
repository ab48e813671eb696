//! Where the body of a reply is kept: within reach of the watchdog where replies stall one by
//! one, over HTTP/2.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::connection_state::{ConnectionState, Stall};
use crate::proxy::{ReplyBody, ReplyError};
use crate::telemetry::RequestLog;

type Polled = Poll<Option<Result<Frame<Bytes>, ReplyError>>>;

/// The body of a reply.
#[derive(Debug)]
pub(super) enum ReplySlot {
    /// It ends with its connection.
    Own(ReplyBody),
    /// The watchdog may end it and leave the connection to others.
    Watched(Arc<WatchedReply>),
}

/// A reply over HTTP/2.
#[derive(Debug)]
pub(super) struct WatchedReply {
    /// `None` once it was given up.
    body: Mutex<Option<ReplyBody>>,
    /// A piece has been handed over, and the next was not asked for yet: the client's window
    /// is full.
    waits: AtomicBool,
    progress: AtomicU32,
    seen: AtomicU32,
    looks: AtomicU64,
}

impl ReplySlot {
    /// A body over HTTP/2, on a connection that is watched.
    pub(super) fn watched(body: ReplyBody, connection: &ConnectionState) -> Self {
        if body.is_end_stream() {
            return Self::Own(body);
        }
        let watched = Arc::new(WatchedReply {
            body: Mutex::new(Some(body)),
            waits: AtomicBool::new(false),
            progress: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            looks: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&watched);
        connection.watch(weak as Weak<dyn Stall>);
        Self::Watched(watched)
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        match self {
            Self::Own(body) => Pin::new(body).poll_frame(cx),
            Self::Watched(watched) => watched.poll_frame(cx),
        }
    }

    /// Whether a client that leaves now has had everything.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Own(body) => body.is_complete(),
            Self::Watched(watched) => watched.read(ReplyBody::is_complete),
        }
    }

    /// The code of a failure that only the body reports.
    pub(super) fn failure(&self) -> Option<&'static str> {
        match self {
            Self::Own(body) => body.failure(),
            Self::Watched(watched) => watched.read(ReplyBody::failure),
        }
    }

    /// Notes which worker broke off.
    pub(super) fn note_failure(&self, error: &ReplyError, log: &RequestLog) {
        match self {
            Self::Own(body) => body.note_failure(error, log),
            Self::Watched(watched) => watched.read(|body| body.note_failure(error, log)),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Watched(watched) => watched.read(Body::is_end_stream),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Watched(watched) => watched.read(Body::size_hint),
        }
    }
}

impl WatchedReply {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Polled {
        let polled = match &mut *self.lock() {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => return Poll::Ready(Some(Err(ReplyError::ClientStalled))),
        };
        self.waits.store(polled.is_ready(), Relaxed);
        self.progress.fetch_add(1, Relaxed);
        polled
    }

    fn read<T: Default>(&self, read: impl FnOnce(&ReplyBody) -> T) -> T {
        self.lock().as_ref().map(read).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<ReplyBody>> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stall for WatchedReply {
    fn look(&self, limit: u64) {
        let progress = self.progress.load(Relaxed);
        let moved = self.seen.swap(progress, Relaxed) != progress;
        if moved || !self.waits.load(Relaxed) {
            self.looks.store(0, Relaxed);
        } else if self.looks.fetch_add(1, Relaxed) >= limit {
            // What it holds of its worker goes back with it.
            drop(self.lock().take());
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn reply_that_its_client_does_not_take_is_given_up_after_the_limit() {
        let state = ConnectionState::new(Arc::default());
        let body = ReplyBody::from(Full::from("x"));
        let mut slot = ReplySlot::watched(body, &state);
        let ReplySlot::Watched(watched) = &slot else {
            unreachable!("it has a body")
        };
        let watched = Arc::clone(watched);
        // Nothing was handed over: the reply waits for its worker.
        (0..10).for_each(|_| watched.look(2));
        assert!(watched.lock().is_some());
        let polled = std::future::poll_fn(|cx| slot.poll_frame(cx)).await;
        assert!(matches!(polled, Some(Ok(_))));
        (0..3).for_each(|_| watched.look(2));
        assert!(watched.lock().is_some());
        watched.look(2);
        let polled = std::future::poll_fn(|cx| slot.poll_frame(cx)).await;
        assert!(matches!(polled, Some(Err(ReplyError::ClientStalled))));
    }
}
