//! The socket under hyper: where faults happen that no HTTP library would produce.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const OPEN: u8 = 0;
const SCRIPTED: u8 = 1; // the next answer is replaced by other bytes
const HANGING_UP: u8 = 2; // closed once everything is written
const CLOSED: u8 = 3; // reads end, writes vanish

/// One connection, as the answers on it see it.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) number: u64,
    mode: AtomicU8,
    script: Mutex<Bytes>,
}

impl Line {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            number,
            mode: AtomicU8::new(OPEN),
            script: Mutex::default(),
        }
    }

    /// Whatever is answered next, these bytes are sent in its place, and then the end.
    pub(crate) fn say_instead(&self, bytes: Bytes) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        self.mode.store(SCRIPTED, Relaxed);
    }

    /// Whether the next answer will be replaced.
    pub(crate) fn is_scripted(&self) -> bool {
        self.mode.load(Relaxed) == SCRIPTED
    }

    /// Closes once the answer is written.
    pub(crate) fn hang_up(&self) {
        self.mode.store(HANGING_UP, Relaxed);
    }
}

/// A socket whose [`Line`] may cut in.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    socket: S,
    line: std::sync::Arc<Line>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(socket: S, line: std::sync::Arc<Line>) -> Self {
        Self { socket, line }
    }

    fn mode(&self) -> u8 {
        self.line.mode.load(Relaxed)
    }

    fn close(&self, cx: &Context<'_>) {
        self.line.mode.store(CLOSED, Relaxed);
        cx.waker().wake_by_ref(); // so that the reader learns of it
    }

    /// Writes the script out and pretends that `len` bytes of the answer went.
    fn recite(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<usize>> {
        let mut script = self
            .line
            .script
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while script.has_remaining() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &script))?;
            script.advance(written);
        }
        drop(script);
        self.close(cx);
        Poll::Ready(Ok(len))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.mode() == CLOSED {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.mode() {
            SCRIPTED => self.recite(cx, buf.len()),
            CLOSED => Poll::Ready(Ok(buf.len())),
            _ => Pin::new(&mut self.socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = || bufs.iter().map(|buf| buf.len()).sum();
        match self.mode() {
            SCRIPTED => self.recite(cx, len()),
            CLOSED => Poll::Ready(Ok(len())),
            _ => Pin::new(&mut self.socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        if self.mode() == HANGING_UP {
            self.close(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
