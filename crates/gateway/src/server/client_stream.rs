//! A client's socket, which notes what the watchdog wants to know, and writes pieces of a reply
//! past hyper.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::connection_state::ConnectionState;

/// Room for unsent bytes that is kept from one chunk to the next.
const KEPT_ROOM: usize = 1024;

/// A client's socket and the state of its connection. A clone is the same socket.
#[derive(Clone)]
pub(super) struct ClientStream {
    socket: Arc<Mutex<Socket>>,
    state: Arc<ConnectionState>,
}

struct Socket {
    stream: TcpStream,
    /// A chunk that was written past hyper; hyper's own bytes come behind it.
    chunk: Vec<u8>,
    /// So much of it has gone.
    sent: usize,
    /// It could not be written, which hyper is to hear.
    broken: Option<io::ErrorKind>,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, state: Arc<ConnectionState>) -> Self {
        let socket = Socket {
            stream,
            chunk: Vec::new(),
            sent: 0,
            broken: None,
        };
        Self {
            socket: Arc::new(Mutex::new(socket)),
            state,
        }
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.state.wrote(written.is_pending());
        written
    }

    /// Writes what is left of a chunk, before anything else is written.
    fn poll_chunk(&self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if socket.chunk.is_empty() && socket.broken.is_none() {
            return Poll::Ready(Ok(()));
        }
        self.note(socket.poll_chunk(cx))
    }

    /// Until the client sends something or closes its end.
    pub(super) fn poll_news(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.socket().stream.poll_read_ready(cx).map(drop)
    }

    /// Carries pieces of a reply from its worker to the client, where hyper has no part in that.
    /// Returns whether something was carried and nothing else is to be done.
    pub(super) fn advance(&self, cx: &mut Context<'_>) -> bool {
        let direct = &self.state.direct;
        if !direct.is_open() || self.state.is_ended() {
            return false;
        }
        let mut socket = self.socket();
        if !matches!(self.poll_chunk(&mut socket, cx), Poll::Ready(Ok(()))) {
            return false;
        }
        let mut carried = false;
        while let Some(piece) = direct.poll_piece(cx) {
            carried = true;
            let written = self.note(socket.poll_write_chunk(cx, &piece));
            self.state.reply_polled(written.is_pending());
            match written {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return false,
                Poll::Pending => break,
            }
        }
        // hyper is woken by requests and by the client's end, and reads them.
        carried && direct.is_open() && !self.state.is_check_due() && !socket.has_news()
    }
}

impl Socket {
    /// Writes a piece of a body as a chunk.
    fn poll_write_chunk(&mut self, cx: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<()>> {
        if piece.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut line = [0; 18];
        let line = size_line(piece.len(), &mut line);
        self.chunk.reserve(piece.len() + line.len() + 2);
        self.chunk.extend_from_slice(line);
        self.chunk.extend_from_slice(piece);
        self.chunk.extend_from_slice(b"\r\n");
        self.poll_chunk(cx)
    }

    /// Whether the client has sent something, or has closed its end, since hyper last read in vain.
    fn has_news(&self) -> bool {
        self.stream.try_io(Interest::READABLE, || Ok(())).is_ok()
    }

    /// Writes what is left of the last chunk.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(broken) = self.broken {
            return Poll::Ready(Err(broken.into()));
        }
        while self.sent < self.chunk.len() {
            let left = &self.chunk[self.sent..];
            // Nearly always there is room, and no wake-up to ask for.
            match self.stream.try_write(left) {
                Ok(count) if count > 0 => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = ready!(self.stream.poll_write_ready(cx));
                }
                failed => {
                    let kind =
                        failed.map_or_else(|error| error.kind(), |_| io::ErrorKind::WriteZero);
                    self.broken = Some(kind);
                    return Poll::Ready(Err(kind.into()));
                }
            }
        }
        self.sent = 0;
        self.chunk.clear();
        self.chunk.shrink_to(KEPT_ROOM);
        Poll::Ready(Ok(()))
    }
}

/// The line that a chunk of this size begins with, at the end of `line`.
fn size_line(mut size: usize, line: &mut [u8; 18]) -> &[u8] {
    let mut start = 16;
    line[start..].copy_from_slice(b"\r\n");
    loop {
        start -= 1;
        line[start] = b"0123456789abcdef"[size & 15];
        size >>= 4;
        if size == 0 {
            return &line[start..];
        }
    }
}

/// Whether the client has closed its end, whatever bytes before that are still unread.
fn is_closed(stream: &TcpStream) -> bool {
    let mut asked = [PollFd::new(stream, PollFlags::RDHUP)];
    let at_once = Timespec::default();
    let answered = poll(&mut asked, Some(&at_once));
    let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    answered.is_ok_and(|count| count > 0) && asked[0].revents().intersects(closed)
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket().stream).poll_read(cx, buffer);
        self.state.read(read.is_pending());
        let new = buffer.filled().get(before..).unwrap_or_default();
        self.state.read_ahead.read(new);
        read
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.socket();
        ready!(self.poll_chunk(&mut socket, cx))?;
        self.note(Pin::new(&mut socket.stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.socket();
        ready!(self.poll_chunk(&mut socket, cx))?;
        self.note(Pin::new(&mut socket.stream).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket().stream.is_write_vectored()
    }

    /// hyper flushes whenever it is polled: here a client that has left is noticed although
    /// hyper does not read, since bytes of another request lie before the end.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.socket();
        if self.state.take_check() && is_closed(&socket.stream) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        ready!(self.poll_chunk(&mut socket, cx))?;
        ready!(Pin::new(&mut socket.stream).poll_flush(cx))?;
        self.state.direct.set_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.socket();
        ready!(self.poll_chunk(&mut socket, cx))?;
        Pin::new(&mut socket.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_a_chunk_is_in_hexadecimal_digits() {
        for size in [1, 15, 16, 255, 4096, 0xbeef, usize::MAX] {
            let line = size_line(size, &mut [0; 18]).to_vec();
            assert_eq!(line, format!("{size:x}\r\n").into_bytes());
        }
    }
}
