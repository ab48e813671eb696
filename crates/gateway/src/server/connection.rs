//! One client connection: HTTP/1.1 or HTTP/2, its time limits, and its end in a drain.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::in_progress::InProgress;
use super::service::Service;
use crate::lane::Lane;

/// Largest head of a request, and largest piece of its body read at once, bytes.
const READ_BUFFER: usize = 256 * 1024;
/// Longest wait for a request's head, the idle time before it included; nginx's default.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How often an HTTP/2 client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a draining connection is looked at.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a connection that was never served may take for its first request, once a drain
/// has begun: its client could not know.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// The service, as the connections of one lane call it.
#[derive(Clone)]
pub(super) struct LaneService {
    pub(super) service: Arc<Service>,
    pub(super) lane: Lane,
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let http1 = &mut builder.http1();
    http1
        .max_buf_size(READ_BUFFER)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let http2 = &mut builder.http2();
    http2
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A socket that remembers whether something written to it waits for room.
struct PendingWrites {
    stream: TcpStream,
    pending: Arc<AtomicBool>,
}

impl PendingWrites {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.pending.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl AsyncRead for PendingWrites {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PendingWrites {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The life of a client's connection, HTTP/1.1 or HTTP/2 with prior knowledge.
pub(super) async fn serve_connection(
    stream: StdTcpStream,
    service: LaneService,
    draining: CancellationToken,
) {
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            warn!(%error, "cannot serve a connection");
            return;
        }
    };
    let busy = Arc::new(AtomicUsize::new(0));
    let (in_progress, served) = (Arc::clone(&busy), AtomicBool::new(false));
    let respond = service_fn(|request| {
        served.store(true, Ordering::Relaxed);
        let (lane, in_progress) = (service.lane, InProgress::new(&in_progress));
        let service = Arc::clone(&service.service);
        async move { Ok::<_, Infallible>(service.answer(lane, in_progress, request).await) }
    });
    let builder = builder();
    let pending_writes = Arc::new(AtomicBool::new(false));
    let stream = PendingWrites {
        stream,
        pending: Arc::clone(&pending_writes),
    };
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), respond));
    let silent = async {
        sleep(HEAD_TIMEOUT).await;
        if served.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        biased;
        ended = serving.as_mut() => ended,
        // hyper's own timeout for headers begins only once it knows the protocol.
        () = silent => return,
        () = draining.cancelled() => {
            if !served.load(Ordering::Relaxed) {
                // Nothing can be said to a client before it asks.
                let asked = poll_fn(|cx| match serving.as_mut().poll(cx) {
                    Poll::Pending if !served.load(Ordering::Relaxed) => Poll::Pending,
                    _ => Poll::Ready(()),
                });
                let _ = timeout(FIRST_REQUEST_GRACE, asked).await;
            }
            serving.as_mut().graceful_shutdown();
            // A connection without a whole request has nothing to finish.
            loop {
                match timeout(DRAIN_CHECK_INTERVAL, serving.as_mut()).await {
                    Ok(ended) => break ended,
                    Err(_) if busy.load(Ordering::Relaxed) > 0 => {}
                    // The end of a reply may still be on its way to a slow client.
                    Err(_) if pending_writes.load(Ordering::Relaxed) => {}
                    Err(_) => return,
                }
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended abnormally");
    }
}
