//! One connection to a worker: send a request, read its head, then pieces of its body.

use std::fmt::Display;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::framing::Framing;
use super::head::{self, RequestHead, ResponseHead};

/// Bytes read at a time; also what a stalled client can make one stream hold.
const READ_SIZE: usize = 16 * 1024;

/// Why an exchange with a worker failed.
#[derive(Debug, Error)]
pub(crate) enum UpstreamError {
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection ended before the first byte of a response.
    #[error("connection closed before a response")]
    NoResponse,
    /// The connection ended inside a response.
    #[error("{0}")]
    Truncated(String),
    /// What came is not HTTP/1.1.
    #[error("{0}")]
    Malformed(&'static str),
}

/// A connection to a worker.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    /// A byte of the response at hand has come.
    answered: bool,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            answered: false,
        }
    }

    /// Whether an idle connection still looks alive: no end, no bytes nobody asked for.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let read = self.stream.try_read(&mut byte);
        self.buffer.is_empty()
            && matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request and reads the response head.
    ///
    /// The worker may answer before it has read everything, or even close on the rest of
    /// the body: an answer that came counts, a failed write alone does not.
    pub(crate) async fn exchange(
        &mut self,
        head: &RequestHead,
        body: &Bytes,
    ) -> Result<ResponseHead, UpstreamError> {
        let total = head.bytes.len() + body.len();
        let mut sent = 0;
        self.answered = false;
        let mut response = poll_fn(|cx| {
            while sent < total {
                match self.poll_send(cx, (&head.bytes, body), sent) {
                    Poll::Ready(Ok(more)) => sent += more,
                    Poll::Ready(Err(_)) => sent = usize::MAX,
                    Poll::Pending => break,
                }
            }
            self.poll_head(cx, head)
        })
        .await?;
        response.keep_alive &= sent == total;
        Ok(response)
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        (head, body): (&[u8], &[u8]),
        sent: usize,
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let written = if sent < head.len() {
            let parts = [IoSlice::new(&head[sent..]), IoSlice::new(body)];
            ready!(stream.poll_write_vectored(cx, &parts))?
        } else {
            ready!(stream.poll_write(cx, &body[sent - head.len()..]))?
        };
        if written == 0 {
            Poll::Ready(Err(io::ErrorKind::WriteZero.into()))
        } else {
            Poll::Ready(Ok(written))
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        request: &RequestHead,
    ) -> Poll<Result<ResponseHead, UpstreamError>> {
        loop {
            let read = ready!(self.poll_fill(cx));
            match read {
                Ok(0) | Err(_) if !self.answered => {
                    return Poll::Ready(Err(UpstreamError::NoResponse));
                }
                Ok(0) => return truncated("connection closed amid the response head"),
                Err(error) => return truncated(error),
                Ok(_) => self.answered = true,
            }
            match head::parse(&mut self.buffer, &request.method) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(why) => return Poll::Ready(Err(UpstreamError::Malformed(why))),
            }
        }
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        framing: &mut Framing,
    ) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        loop {
            match framing.decode(&mut self.buffer) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) if *framing == Framing::Done => return Poll::Ready(None),
                Ok(None) => {}
                Err(bad) => return Poll::Ready(Some(Err(UpstreamError::Malformed(bad.0)))),
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => {
                    let end = framing
                        .close()
                        .map_err(|bad| UpstreamError::Truncated(bad.0.to_owned()));
                    return Poll::Ready(end.err().map(Err));
                }
                Ok(_) => {}
                Err(error) => {
                    return Poll::Ready(Some(Err(UpstreamError::Truncated(error.to_string()))));
                }
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < READ_SIZE / 8 {
            self.buffer.reserve(READ_SIZE);
        }
        tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer)
    }
}

fn truncated<T>(why: impl Display) -> Poll<Result<T, UpstreamError>> {
    Poll::Ready(Err(UpstreamError::Truncated(why.to_string())))
}
