//! One connection to a worker: send a request, read its head, then pieces of its body.

use std::cell::RefCell;
use std::fmt::Display;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::Framing;
use super::head::{self, RequestHead, ResponseHead};
use crate::upstream::call::CallBody;
use crate::upstream::error::{UpstreamError, of_tls};
use crate::upstream::io::Io;
use crate::upstream::tls::Configs;

/// Bytes read at a time; also what a stalled client can make one stream hold.
const READ_SIZE: usize = 16 * 1024;

thread_local! {
    /// What is read comes here first: so a connection's own buffer is as large as what comes, not
    /// as what may come.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_SIZE].into());
}

/// A connection to a worker.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Io,
    peer: IpAddr,
    buffer: BytesMut,
    /// A byte of the response at hand has come.
    answered: bool,
    /// The last read was as large as it may be: more is to be expected.
    floods: bool,
}

impl Connection {
    /// A connection to the address `peer`.
    pub(super) fn new(stream: Io, peer: IpAddr) -> Self {
        Self {
            stream,
            peer,
            buffer: BytesMut::new(),
            answered: false,
            floods: false,
        }
    }

    /// What it was made with, where it is over TLS.
    pub(super) fn tls_configs(&self) -> Option<&Arc<Configs>> {
        self.stream.tls_configs()
    }

    /// The address that it leads to.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Whether an idle connection still looks alive: no end, no unexpected bytes.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let read = self.stream.try_read(&mut byte);
        self.buffer.is_empty()
            && matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request and reads the response head.
    ///
    /// The worker may answer before it has read everything, or even close on the rest of
    /// the body: an answer that came counts, a failed write alone does not.
    pub(super) async fn round_trip(
        &mut self,
        head: &RequestHead,
        body: CallBody<'_>,
    ) -> Result<ResponseHead, UpstreamError> {
        let total = head.bytes.len() + body.len();
        let (mut sent, mut flushed) = (0, false);
        self.answered = false;
        let mut response = poll_fn(|cx| {
            while sent < total {
                let mut slices = [IoSlice::new(&[]); 4];
                let unsent = body.unsent(&head.bytes, sent, &mut slices);
                match Pin::new(&mut self.stream).poll_write_vectored(cx, unsent) {
                    Poll::Ready(Ok(more)) if more > 0 => sent += more,
                    Poll::Ready(_) => sent = usize::MAX,
                    Poll::Pending => break,
                }
            }
            // Over TLS, what was taken may not be on its way yet.
            if sent == total && !flushed {
                match Pin::new(&mut self.stream).poll_flush(cx) {
                    Poll::Ready(Ok(())) => flushed = true,
                    Poll::Ready(Err(_)) => sent = usize::MAX,
                    Poll::Pending => {}
                }
            }
            self.poll_head(cx, head)
        })
        .await?;
        response.keep_alive &= flushed;
        Ok(response)
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        request: &RequestHead,
    ) -> Poll<Result<ResponseHead, UpstreamError>> {
        loop {
            let read = ready!(self.poll_fill(cx));
            match read {
                // A worker that wants another certificate says so after its own handshake.
                Err(error) if !self.answered && of_tls(&error).is_some() => {
                    return Poll::Ready(Err(UpstreamError::Tls(error)));
                }
                Ok(0) | Err(_) if !self.answered => {
                    return Poll::Ready(Err(UpstreamError::NoResponse));
                }
                Ok(0) => return truncated("connection closed amid the response head"),
                Err(error) => return truncated(error),
                Ok(_) => self.answered = true,
            }
            match head::parse(&mut self.buffer, &request.method, request.switch) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(why) => return Poll::Ready(Err(UpstreamError::Malformed(why))),
            }
        }
    }

    /// What carries the bytes after a switch to another protocol, and those that came already.
    pub(super) fn into_stream(self) -> (Bytes, Io) {
        (self.buffer.freeze(), self.stream)
    }

    /// The next piece of the body; `None` at its end.
    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        framing: &mut Framing,
    ) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        loop {
            if *framing == Framing::Done {
                return Poll::Ready(None);
            }
            // Nearly always so when a read begins.
            if !self.buffer.is_empty() {
                match framing.decode(&mut self.buffer) {
                    Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                    Ok(None) if *framing == Framing::Done => return Poll::Ready(None),
                    Ok(None) => {}
                    Err(bad) => return Poll::Ready(Some(Err(UpstreamError::Malformed(bad.0)))),
                }
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
        let count = if self.floods {
            self.buffer.reserve(READ_SIZE);
            let stream = Pin::new(&mut self.stream);
            ready!(tokio_util::io::poll_read_buf(stream, cx, &mut self.buffer))?
        } else {
            let read = READ.with_borrow_mut(|read| {
                let mut read = ReadBuf::new(read);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
                self.buffer.extend_from_slice(read.filled());
                Poll::Ready(Ok::<_, io::Error>(read.filled().len()))
            });
            ready!(read)?
        };
        self.floods = count >= READ_SIZE;
        Poll::Ready(Ok(count))
    }
}

fn truncated<T>(why: impl Display) -> Poll<Result<T, UpstreamError>> {
    Poll::Ready(Err(UpstreamError::Truncated(why.to_string())))
}
