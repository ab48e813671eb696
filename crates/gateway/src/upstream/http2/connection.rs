//! One connection, and the requests in progress on it.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tracing::debug;

use crate::upstream::error::UpstreamError;
use crate::upstream::io::Io;
use crate::upstream::tls::Configs;

/// Requests at a time over one connection.
const MAX_STREAMS: usize = 64;
/// What one response may pile up unread, bytes. h2 charges frames under 256 bytes against half of
/// the connection's window and ends the connection, with all streams, when that is used up: with
/// the default of 64 KiB some 130 unread tokens would do.
const STREAM_WINDOW: u32 = 16 << 20;
/// What all responses of one connection may pile up unread, bytes.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// How often a worker with requests is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long its answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    streams: AtomicUsize,
    pub(super) peer: IpAddr,
    /// What it was made with, where it is over TLS.
    pub(super) tls: Option<Arc<Configs>>,
}

/// A request's place on a connection, until dropped.
#[derive(Debug)]
pub(in crate::upstream) struct Stream(Arc<Connection>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

impl Connection {
    /// A connection over `io`; its task runs on the caller's lane.
    pub(super) async fn new(io: Io, peer: IpAddr) -> Result<Arc<Self>, UpstreamError> {
        let tls = io.tls_configs().map(Arc::clone);
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let handshake = builder.handshake(TokioIo::new(io)).await;
        let (sender, driver) =
            handshake.map_err(|error| UpstreamError::NotSent(io::Error::other(error)))?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                debug!(%error, "HTTP/2 connection to a worker ended abnormally");
            }
        });
        Ok(Arc::new(Self {
            sender,
            streams: AtomicUsize::new(0),
            peer,
            tls,
        }))
    }

    /// Whether it takes no more requests.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether no request is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.streams.load(Relaxed) == 0
    }

    /// A place for one more request. Other threads may give places back meanwhile.
    pub(super) fn take_place(self: &Arc<Self>) -> Option<Stream> {
        if self.is_closed() {
            return None;
        }
        let more = |taken: usize| (taken < MAX_STREAMS).then_some(taken + 1);
        let taken = self.streams.fetch_update(Relaxed, Relaxed, more);
        taken.ok().map(|_| Stream(Arc::clone(self)))
    }
}

impl Stream {
    /// Sends a request; the response's body has to keep the place.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let mut sender = self.0.sender.clone();
        let sent = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        sent.await.map_err(failure)
    }
}

fn failure(error: hyper::Error) -> UpstreamError {
    let reason = error
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>())
        .and_then(h2::Error::reason);
    // RFC 9113 §8.7: such a request was not processed.
    if error.is_canceled() || error.is_closed() || reason == Some(h2::Reason::REFUSED_STREAM) {
        return UpstreamError::NotSent(io::Error::other(error));
    }
    UpstreamError::NoResponse
}
