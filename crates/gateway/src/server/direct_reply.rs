//! A reply on its way past hyper, between its head and its end.
//!
//! A poll of hyper costs as much as everything else that is done with a piece of a stream. A chunk
//! is the same whatever came before it (RFC 9112 §7.1), so pieces that come while hyper has nothing
//! left to write are written without it. hyper has written the head by then; it notices a client
//! that leaves, and writes the last piece and the end.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::ReplyError;

/// A reply's body.
pub(super) type Pieces = Box<dyn Body<Data = Bytes, Error = ReplyError> + Send + Unpin>;

type Piece = Option<Result<Frame<Bytes>, ReplyError>>;

/// The reply of a connection that may go past hyper.
#[derive(Default)]
pub(super) struct DirectReply {
    /// The connection can write chunks itself.
    enabled: AtomicBool,
    /// hyper has asked for more in vain, since it was last given something.
    waits: AtomicBool,
    /// Besides, all that it was given has been flushed.
    open: AtomicBool,
    reply: Mutex<Option<Reply>>,
}

struct Reply {
    pieces: Pieces,
    /// Read, but hyper's to write.
    left: Option<Piece>,
}

impl DirectReply {
    /// From now on the connection writes chunks itself where it can.
    pub(super) fn enable(&self) {
        self.enabled.store(true, Relaxed);
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.load(Relaxed)
    }

    /// A reply begins; hyper is to frame it in chunks.
    pub(super) fn begin(&self, pieces: Pieces) {
        self.waits.store(false, Relaxed);
        self.open.store(false, Relaxed);
        *self.lock() = Some(Reply { pieces, left: None });
    }

    /// The reply has ended, or hyper has dropped it.
    pub(super) fn end(&self) {
        self.waits.store(false, Relaxed);
        self.open.store(false, Relaxed);
        let reply = self.lock().take();
        // What this gives back may look at the connection.
        drop(reply);
    }

    /// Whether the next piece may be written past hyper.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// hyper has nothing left to write.
    pub(super) fn set_flushed(&self) {
        if self.waits.load(Relaxed) {
            self.open.store(true, Relaxed);
        }
    }

    /// The next piece, for hyper.
    pub(super) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Piece> {
        let mut slot = self.lock();
        let Some(reply) = &mut *slot else {
            return Poll::Ready(None);
        };
        let polled = match reply.left.take() {
            Some(left) => Poll::Ready(left),
            None => Pin::new(&mut reply.pieces).poll_frame(cx),
        };
        self.waits.store(polled.is_pending(), Relaxed);
        if polled.is_ready() {
            self.open.store(false, Relaxed);
        }
        polled
    }

    /// The next piece to write past hyper; `None` if nothing has come, or what has is hyper's.
    pub(super) fn poll_piece(&self, cx: &mut Context<'_>) -> Option<Bytes> {
        let mut slot = self.lock();
        let reply = slot.as_mut()?;
        let Poll::Ready(mut piece) = Pin::new(&mut reply.pieces).poll_frame(cx) else {
            return None;
        };
        if let Some(Ok(frame)) = piece {
            match frame.into_data() {
                Ok(data) if !reply.pieces.is_end_stream() => return Some(data),
                Ok(data) => piece = Some(Ok(Frame::data(data))),
                Err(frame) => piece = Some(Ok(frame)),
            }
        }
        reply.left = Some(piece);
        self.open.store(false, Relaxed);
        None
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let slot = self.lock();
        let ended = |reply: &Reply| reply.left.is_none() && reply.pieces.is_end_stream();
        slot.as_ref().is_none_or(ended)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let slot = self.lock();
        let hint = slot.as_ref().map(|reply| reply.pieces.size_hint());
        hint.unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Reply>> {
        self.reply.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DirectReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The reply has the state of its connection, which has this.
        f.debug_struct("DirectReply").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::task::noop_waker_ref;

    use super::*;

    /// What the worker has sent; it goes on until that is empty.
    struct Sent(VecDeque<Poll<Result<&'static str, ReplyError>>>);

    impl Body for Sent {
        type Data = Bytes;
        type Error = ReplyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Piece> {
            match self.0.pop_front() {
                None => Poll::Ready(None),
                Some(sent) => sent.map(|sent| Some(sent.map(|data| Frame::data(data.into())))),
            }
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    fn reply(
        sent: impl IntoIterator<Item = Poll<Result<&'static str, ReplyError>>>,
    ) -> DirectReply {
        let direct = DirectReply::default();
        direct.begin(Box::new(Sent(sent.into_iter().collect())));
        direct
    }

    fn text(polled: Poll<Piece>) -> Option<Bytes> {
        match polled {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            _ => None,
        }
    }

    #[test]
    fn pieces_pass_hyper_only_while_it_waits_and_has_flushed_all() {
        let came = |data| Poll::Ready(Ok(data));
        let waits = Poll::Pending;
        let direct = reply([
            came("1"),
            waits,
            came("2"),
            Poll::Pending,
            came("3"),
            came("4"),
        ]);
        let cx = &mut Context::from_waker(noop_waker_ref());
        direct.set_flushed();
        assert!(!direct.is_open(), "hyper has the head to write");
        assert_eq!(text(direct.poll_frame(cx)).unwrap(), "1");
        direct.set_flushed();
        assert!(!direct.is_open(), "hyper has that piece to write");
        assert!(direct.poll_frame(cx).is_pending() && !direct.is_open());
        direct.set_flushed();
        assert!(direct.is_open());
        assert_eq!(direct.poll_piece(cx).unwrap(), "2");
        assert!(direct.poll_piece(cx).is_none() && direct.is_open());
        assert_eq!(text(direct.poll_frame(cx)).unwrap(), "3");
        direct.set_flushed();
        assert!(!direct.is_open());
    }

    #[test]
    fn last_piece_and_failures_are_hypers_to_write() {
        let lost = Poll::Ready(Err(ReplyError::WorkerLost));
        for (last, failed) in [(Poll::Ready(Ok("2")), false), (lost, true)] {
            let direct = reply([Poll::Pending, last]);
            let cx = &mut Context::from_waker(noop_waker_ref());
            assert!(direct.poll_frame(cx).is_pending());
            direct.set_flushed();
            assert!(direct.is_open());
            assert!(direct.poll_piece(cx).is_none() && !direct.is_open());
            assert!(!direct.is_end_stream());
            match direct.poll_frame(cx) {
                Poll::Ready(Some(piece)) => assert_eq!(piece.is_err(), failed),
                _ => panic!("it is lost"),
            }
            assert!(direct.is_end_stream());
            direct.end();
            assert!(matches!(direct.poll_frame(cx), Poll::Ready(None)));
        }
    }
}
