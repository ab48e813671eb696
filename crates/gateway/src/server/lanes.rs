//! Lanes: one thread and one single-threaded runtime per core.
//!
//! A connection lives on one lane, and so do its requests and the connections to workers
//! that carry them: nothing on a request's way crosses threads.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use super::service::Service;
use crate::shutdown::Shutdown;

/// Accepted connections that wait for their lane's thread.
const ACCEPT_QUEUE: usize = 1024;
/// Largest head of a request, and largest piece of its body read at once, bytes.
const READ_BUFFER: usize = 256 * 1024;
/// Longest wait for a request's head, the idle time before it included; nginx's default.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How often an HTTP/2 client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a draining connection is looked at.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a connection that was never served may take for its first request, once a drain
/// has begun: its client could not know.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);
/// Pause after the system refused a connection (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All lanes of a gateway.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    /// Yields `None` once every lane has ended.
    ended: mpsc::Receiver<()>,
}

#[derive(Debug)]
struct Lane {
    connections: mpsc::Sender<StdTcpStream>,
    open: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Lanes {
    /// Starts `count` lanes behind the gate.
    pub(crate) fn start(
        count: usize,
        service: &Arc<Service>,
        shutdown: &Shutdown,
    ) -> io::Result<Self> {
        let (running, ended) = mpsc::channel(1);
        let lanes = (0..count.max(1)).map(|index| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (connections, incoming) = mpsc::channel(ACCEPT_QUEUE);
            let open = Arc::new(AtomicUsize::new(0));
            let service = LaneService {
                service: Arc::clone(service),
                lane: index,
            };
            let serving = serve(service, incoming, Arc::clone(&open), shutdown.clone());
            let running = running.clone();
            let thread = thread::Builder::new()
                .name(format!("smg-lane-{index}"))
                .spawn(move || {
                    runtime.block_on(serving);
                    // Dropping the runtime drops what a cut drain left behind.
                    drop(runtime);
                    drop(running);
                })?;
            Ok(Lane {
                connections,
                open,
                thread,
            })
        });
        Ok(Self {
            lanes: lanes.collect::<io::Result<_>>()?,
            ended,
        })
    }

    /// Hands accepted connections to lanes; runs until dropped or a lane has ended.
    pub(crate) async fn accept(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if self.dispatch(stream).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Closes a listener; what the system has accepted for it is served.
    pub(crate) async fn stop_accepting(&self, listener: TcpListener) {
        // Asked of the system itself: the runtime may not have heard of the last ones yet.
        let Ok(listener) = listener.into_std() else {
            return;
        };
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream.set_nonblocking(true).map(|()| stream);
            if let Ok(stream) = stream.and_then(TcpStream::from_std)
                && self.dispatch(stream).await.is_err()
            {
                return;
            }
        }
    }

    /// Gives a connection to the lane with the fewest open ones; an error when that has ended.
    async fn dispatch(&self, stream: TcpStream) -> Result<(), ()> {
        let prepared = stream.set_nodelay(true).and_then(|()| stream.into_std());
        let idlest = self
            .lanes
            .iter()
            .min_by_key(|lane| lane.open.load(Ordering::Relaxed));
        let (Ok(stream), Some(lane)) = (prepared, idlest) else {
            return Ok(());
        };
        lane.open.fetch_add(1, Ordering::Relaxed);
        lane.connections.send(stream).await.map_err(|_| ())
    }

    /// Until every lane has ended.
    pub(crate) async fn ended(&mut self) {
        while self.ended.recv().await.is_some() {}
    }

    /// Waits for the threads, which have nothing left to do.
    pub(crate) fn join(self) {
        for lane in self.lanes {
            if lane.thread.join().is_err() {
                error!("a lane panicked");
            }
        }
    }
}

/// The gate, as one lane's connections come to it.
#[derive(Clone)]
struct LaneService {
    service: Arc<Service>,
    lane: usize,
}

/// Counts a request as in progress on its connection until dropped.
#[derive(Debug)]
pub(super) struct InProgress(Arc<AtomicUsize>);

impl InProgress {
    fn new(busy: &Arc<AtomicUsize>) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(busy))
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a connection as open until dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The life of a lane.
async fn serve(
    service: LaneService,
    mut incoming: mpsc::Receiver<StdTcpStream>,
    open: Arc<AtomicUsize>,
    shutdown: Shutdown,
) {
    let connections = TaskTracker::new();
    // Each lane has its own token: connections look at it often, and lanes share nothing.
    let draining = CancellationToken::new();
    let connect = |stream| {
        let open = Open(Arc::clone(&open));
        let (service, draining) = (service.clone(), draining.clone());
        connections.spawn(async move {
            connection(stream, service, draining).await;
            drop(open);
        });
    };
    loop {
        tokio::select! {
            biased;
            () = shutdown.draining() => break,
            stream = incoming.recv() => match stream {
                Some(stream) => connect(stream),
                None => break,
            },
        }
    }
    while let Ok(stream) = incoming.try_recv() {
        connect(stream);
    }
    draining.cancel();
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = shutdown.aborted() => {}
    }
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
    is: Arc<AtomicBool>,
}

impl PendingWrites {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.is.store(written.is_pending(), Ordering::Relaxed);
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
async fn connection(stream: StdTcpStream, service: LaneService, draining: CancellationToken) {
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
        is: Arc::clone(&pending_writes),
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
        // hyper's own patience begins only once it knows the protocol.
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
