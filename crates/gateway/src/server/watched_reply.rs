//! A reply within reach of the watchdog: replies stall one by one over HTTP/2.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use super::connection_state::{ConnectionState, Stall};
use super::open_reply::{OpenReply, Polled};
use crate::proxy::ReplyError;

/// A reply over HTTP/2.
#[derive(Debug)]
pub(super) struct WatchedReply {
    /// `None` once it was given up.
    open: Mutex<Option<OpenReply>>,
    /// A piece has been handed over, and the next was not asked for yet: the client's window
    /// is full.
    waits: AtomicBool,
    progress: AtomicU32,
    seen: AtomicU32,
    looks: AtomicU64,
}

impl WatchedReply {
    /// A reply on a connection that is watched.
    pub(super) fn new(open: OpenReply, connection: &ConnectionState) -> Arc<Self> {
        let watched = Arc::new(Self {
            open: Mutex::new(Some(open)),
            waits: AtomicBool::new(false),
            progress: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            looks: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&watched);
        connection.watch(weak as Weak<dyn Stall>);
        watched
    }

    pub(super) fn poll_frame(&self, cx: &mut Context<'_>) -> Polled {
        let polled = match &mut *self.lock() {
            Some(open) => open.poll_frame(cx),
            None => return Poll::Ready(Some(Err(ReplyError::ClientStalled))),
        };
        self.waits.store(polled.is_ready(), Relaxed);
        self.progress.fetch_add(1, Relaxed);
        polled
    }

    pub(super) fn set_complete(&self) {
        if let Some(open) = &mut *self.lock() {
            open.set_complete();
        }
    }

    pub(super) fn read<T: Default>(&self, read: impl FnOnce(&OpenReply) -> T) -> T {
        self.lock().as_ref().map(read).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<OpenReply>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stall for WatchedReply {
    fn look(&self, limit: u64) {
        let progress = self.progress.load(Relaxed);
        let moved = self.seen.swap(progress, Relaxed) != progress;
        if moved || !self.waits.load(Relaxed) {
            self.looks.store(0, Relaxed);
        } else if self.looks.fetch_add(1, Relaxed) >= limit {
            // What it holds of its worker and of the limits goes back with it. hyper asks no more
            // while the window is full, so it learns of this late or never.
            let open = self.lock().take();
            if let Some(open) = open {
                open.give_up();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;
    use crate::proxy::ReplyBody;

    #[tokio::test]
    async fn reply_that_its_client_does_not_take_is_given_up_after_the_limit() {
        let state = ConnectionState::new(Arc::default());
        let body = ReplyBody::from(Full::from("x"));
        let watched = WatchedReply::new(OpenReply::new(body, None), &state);
        // Nothing was handed over: the reply waits for its worker.
        (0..10).for_each(|_| watched.look(2));
        assert!(watched.lock().is_some());
        let polled = std::future::poll_fn(|cx| watched.poll_frame(cx)).await;
        assert!(matches!(polled, Some(Ok(_))));
        (0..3).for_each(|_| watched.look(2));
        assert!(watched.lock().is_some());
        watched.look(2);
        let polled = std::future::poll_fn(|cx| watched.poll_frame(cx)).await;
        assert!(matches!(polled, Some(Err(ReplyError::ClientStalled))));
    }
}
