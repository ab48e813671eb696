//! The socket under hyper, which produces the faults that no HTTP library would.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const OPEN: u8 = 0;
const SCRIPTED: u8 = 1; // other bytes replace the next response
const CLOSING: u8 = 2; // closes after the next flush
const CLOSED: u8 = 3; // reads return the end, writes are discarded

/// Control over one connection, held by the responses on it.
#[derive(Debug)]
pub(crate) struct ConnectionControl {
    pub(crate) number: u64,
    mode: AtomicU8,
    script: Mutex<Bytes>,
}

impl ConnectionControl {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            number,
            mode: AtomicU8::new(OPEN),
            script: Mutex::default(),
        }
    }

    /// Sends these bytes instead of the next response, then closes.
    pub(crate) fn replace_response(&self, bytes: Bytes) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        self.mode.store(SCRIPTED, Relaxed);
    }

    /// Whether the next response will be replaced.
    pub(crate) fn is_scripted(&self) -> bool {
        self.mode.load(Relaxed) == SCRIPTED
    }

    /// Closes once the response is written.
    pub(crate) fn close_after_write(&self) {
        self.mode.store(CLOSING, Relaxed);
    }
}

/// A socket that obeys its [`ConnectionControl`].
#[derive(Debug)]
pub(crate) struct Wire<S> {
    socket: S,
    control: Arc<ConnectionControl>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(socket: S, control: Arc<ConnectionControl>) -> Self {
        Self { socket, control }
    }

    fn mode(&self) -> u8 {
        self.control.mode.load(Relaxed)
    }

    fn close(&self, cx: &Context<'_>) {
        self.control.mode.store(CLOSED, Relaxed);
        cx.waker().wake_by_ref(); // lets the reader see the end
    }

    /// Writes the script and reports `len` bytes of the response as written.
    fn write_script(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<usize>> {
        let mut script = self
            .control
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
            SCRIPTED => self.write_script(cx, buf.len()),
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
            SCRIPTED => self.write_script(cx, len()),
            CLOSED => Poll::Ready(Ok(len())),
            _ => Pin::new(&mut self.socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        if self.mode() == CLOSING {
            self.close(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
