//! One client connection: HTTP/1.1 or HTTP/2, its time limits, and its end in a drain.

use std::future::poll_fn;
use std::net::TcpStream as StdTcpStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;

use http::{Request, Response, Version};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::client_stream::ClientStream;
use super::connection_state::{ConnectionState, InProgress};
use super::response::Reply;
use super::service::Service;
use super::tls::LaneTls;
use crate::lane::Lane;

/// Largest head of a request, and largest piece of its body read at once, bytes.
const READ_BUFFER: usize = 256 * 1024;
/// The same for HTTP/2.
const MAX_HEADER_LIST: u32 = 256 * 1024;
/// Requests at a time over one HTTP/2 connection: a proxy in front may have no other connection.
/// h2's limits on streams that are reset stay as they are, so a client cannot open and drop
/// streams faster than they are served.
const MAX_STREAMS: u32 = 5000;
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
    /// Those of all lanes.
    pub(super) runtimes: Arc<[Handle]>,
}

impl LaneService {
    /// Answers a request: on this lane, or, of several at a time over one HTTP/2 connection, on
    /// the lanes in turn. Bodies are written by the connection's lane in any case.
    async fn answer(
        self,
        request: Box<Request<Incoming>>,
        in_progress: InProgress,
        turn: usize,
    ) -> Result<Response<Reply>, JoinError> {
        let shared = request.version() == Version::HTTP_2 && in_progress.state().in_progress() > 1;
        let lane = Lane(turn % self.runtimes.len());
        let Some(runtime) = lane
            .of(&self.runtimes)
            .filter(|_| shared && lane != self.lane)
        else {
            return Ok(self.service.answer(self.lane, in_progress, request).await);
        };
        let service = Arc::clone(&self.service);
        let answer = async move { service.answer(lane, in_progress, request).await };
        AbortOnDropHandle::new(runtime.spawn(answer)).await
    }
}

/// HTTP/1.1, and HTTP/2 with prior knowledge. Times of HTTP/1.1 are the watchdog's.
fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let http1 = &mut builder.http1();
    http1.max_buf_size(READ_BUFFER).header_read_timeout(None);
    let http2 = &mut builder.http2();
    http2
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// The life of a client's connection.
pub(super) async fn serve_connection(
    stream: StdTcpStream,
    service: LaneService,
    state: Arc<ConnectionState>,
    draining: CancellationToken,
) {
    if let Some(stream) = registered(stream) {
        let stream = ClientStream::new(stream, Arc::clone(&state));
        state.direct.enable();
        state.read_ahead.track();
        // hyper has 16 kB for a connection, which one that rests gives back.
        while serve_until_rest(&stream, &service, &state, &draining).await
            && news(&stream, &state, &draining).await
        {}
    }
}

/// Serves requests; returns whether the connection is at rest, and has not ended.
async fn serve_until_rest(
    stream: &ClientStream,
    service: &LaneService,
    state: &Arc<ConnectionState>,
    draining: &CancellationToken,
) -> bool {
    let (service, draining) = (service.clone(), draining.clone());
    let mut serving = pin!(serve(stream.clone(), service, Arc::clone(state), draining));
    poll_fn(|cx| {
        if stream.advance(cx) {
            return Poll::Pending;
        }
        match serving.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(false),
            Poll::Pending if state.takes_rest() => Poll::Ready(true),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Waits at rest until the client sends something; returns `false` when the connection is to end.
async fn news(
    stream: &ClientStream,
    state: &ConnectionState,
    draining: &CancellationToken,
) -> bool {
    let news = poll_fn(|cx| {
        if state.is_doomed(cx) {
            return Poll::Ready(false);
        }
        stream.poll_news(cx).map(|()| true)
    });
    tokio::select! {
        biased;
        () = draining.cancelled() => false,
        news = news => news,
    }
}

/// The same over TLS.
pub(super) async fn serve_tls_connection(
    stream: StdTcpStream,
    tls: LaneTls,
    service: LaneService,
    state: Arc<ConnectionState>,
    draining: CancellationToken,
) {
    if let Some(stream) = registered(stream)
        && let Some(stream) = tls.handshake(stream, &state, &draining).await
    {
        serve(stream, service, state, draining).await;
    }
}

/// A socket whose events this thread's runtime waits for.
fn registered(stream: StdTcpStream) -> Option<TcpStream> {
    let stream = TcpStream::from_std(stream);
    stream
        .inspect_err(|error| warn!(%error, "cannot serve a connection"))
        .ok()
}

/// Serves requests until the connection ends.
async fn serve<S>(
    stream: S,
    service: LaneService,
    state: Arc<ConnectionState>,
    draining: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let turns = AtomicUsize::new(service.lane.0);
    let respond = service_fn(|request| {
        let turn = turns.fetch_add(1, Relaxed);
        note_beginning(&request, &state);
        let request = Box::new(request);
        // On the heap while it runs: hyper keeps room for it as long as the connection is open.
        Box::pin(
            service
                .clone()
                .answer(request, InProgress::new(&state), turn),
        )
    });
    let builder = builder();
    let stream = TokioIo::new(stream);
    let mut serving = pin!(builder.serve_connection_with_upgrades(stream, respond));
    let ended = tokio::select! {
        biased;
        ended = until_doomed(&state, serving.as_mut()) => Some(ended),
        () = draining.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => drain(serving, &state).await,
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended abnormally");
    }
}

/// Notes how much of the connection is this request's.
fn note_beginning(request: &Request<Incoming>, state: &ConnectionState) {
    let body = || request.body().size_hint().exact();
    let simple = request.version() != Version::HTTP_2;
    state.read_ahead.begin(simple.then(body).flatten());
}

/// Serves a connection until it ends or is doomed. Dropping a connection that is doomed gives
/// back what its requests hold.
pub(super) async fn until_doomed<E>(
    state: &ConnectionState,
    mut serving: Pin<&mut impl Future<Output = Result<(), E>>>,
) -> Result<(), E> {
    poll_fn(|cx| {
        if state.is_doomed(cx) {
            return Poll::Ready(Ok(()));
        }
        serving.as_mut().poll(cx)
    })
    .await
}

/// The end of a connection in a drain.
async fn drain<F>(mut serving: Pin<&mut F>, state: &ConnectionState) -> F::Output
where
    F: GracefulConnection,
{
    if !state.is_served() {
        // Nothing can be said to a client before it asks.
        let asked = poll_fn(|cx| match serving.as_mut().poll(cx) {
            Poll::Pending if !state.is_served() => Poll::Pending,
            _ => Poll::Ready(()),
        });
        let _ = timeout(FIRST_REQUEST_GRACE, asked).await;
    }
    serving.as_mut().graceful_shutdown();
    // A connection without a whole request has nothing to finish.
    loop {
        match timeout(DRAIN_CHECK_INTERVAL, serving.as_mut()).await {
            Ok(ended) => return ended,
            Err(_) if state.is_ended() => return Ok(()),
            Err(_) if state.in_progress() > 0 => {}
            // The end of a reply may still be on its way to a slow client.
            Err(_) if state.write_pending() => {}
            Err(_) => return Ok(()),
        }
    }
}
