//! The connections to one worker: idle ones kept per lane, new ones opened on demand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use super::head::{RequestHead, ResponseHead};
use crate::config::WorkerUrl;
use crate::lane::Lane;
use crate::upstream::address::Host;
use crate::upstream::call::Call;
use crate::upstream::error::UpstreamError;
use crate::upstream::limits::ConnectionLimits;
use crate::upstream::tls::Offer;

/// A kept connection that ends within this time was closed before the worker saw the request.
const STALE_WITHIN: Duration = Duration::from_secs(1);

/// The connections to one worker. A connection stays on the lane that opened it.
#[derive(Debug)]
pub(in crate::upstream) struct ConnectionPool {
    url: WorkerUrl,
    host: Arc<Host>,
    limits: Arc<ConnectionLimits>,
    lanes: Vec<Mutex<Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

/// A response head, and the connection its body comes from.
#[derive(Debug)]
pub(in crate::upstream) struct PooledResponse {
    pub(in crate::upstream) head: ResponseHead,
    /// On the heap for as long as it lives: it is handed on several times per call.
    pub(super) connection: Box<Connection>,
}

impl ConnectionPool {
    pub(in crate::upstream) fn new(url: WorkerUrl, limits: Arc<ConnectionLimits>) -> Self {
        let lanes = (0..limits.lanes).map(|_| Mutex::default()).collect();
        let host = limits.resolver.host(url.host());
        Self {
            url,
            host,
            limits,
            lanes,
        }
    }

    /// Sends a call over an idle connection, or a new one.
    ///
    /// A kept connection may have died unseen: when it ends at once, before the first byte of
    /// a response, the request goes out once more on a fresh one. A worker that closes later
    /// had the request and may have run it.
    pub(in crate::upstream) async fn send(
        &self,
        lane: Lane,
        call: &Call<'_>,
    ) -> Result<PooledResponse, UpstreamError> {
        let head = RequestHead::new(call, &self.url);
        let mut lost = false;
        if let Some(mut connection) = self.take(lane) {
            let sent = Instant::now();
            match connection.round_trip(&head, call.body).await {
                Ok(head) => return Ok(PooledResponse { head, connection }),
                Err(UpstreamError::NoResponse | UpstreamError::Tls(_))
                    if sent.elapsed() < STALE_WITHIN =>
                {
                    lost = true;
                }
                Err(error) => return Err(error),
            }
        }
        let mut connection = match self.open().await {
            // The request may be what ended the worker.
            Err(UpstreamError::NotSent(_)) if lost => return Err(UpstreamError::NoResponse),
            opened => opened?,
        };
        let head = connection.round_trip(&head, call.body).await?;
        Ok(PooledResponse { head, connection })
    }

    /// Keeps a connection whose response has been read to its end.
    pub(super) fn keep(&self, lane: Lane, connection: Box<Connection>) {
        let Some(mut idle) = self.idle(lane) else {
            return;
        };
        if self.is_current(&connection) && idle.len() < self.limits.max_idle {
            idle.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Whether another connection would be made to the same address, with the same trust.
    fn is_current(&self, connection: &Connection) -> bool {
        self.host.is_current(connection.peer()) && self.is_trusted(connection)
    }

    /// Whether it is without TLS, or was made with the certificates in force.
    fn is_trusted(&self, connection: &Connection) -> bool {
        let configs = connection.tls_configs();
        configs.is_none_or(|configs| self.limits.tls.is_current(configs))
    }

    /// Closes connections that have been idle for too long, that the worker has closed, that
    /// lead to an address which is no longer the worker's, or that another trust allowed.
    pub(in crate::upstream) fn sweep(&self) {
        let now = Instant::now();
        for lane in &self.lanes {
            lock(lane).retain_mut(|idle| {
                now.duration_since(idle.since) < self.limits.max_idle_time
                    && self.is_current(&idle.connection)
                    && idle.connection.is_quiet()
            });
        }
    }

    fn take(&self, lane: Lane) -> Option<Box<Connection>> {
        loop {
            let mut idle = self.idle(lane)?.pop()?;
            if self.is_trusted(&idle.connection) && idle.connection.is_quiet() {
                return Some(idle.connection);
            }
        }
    }

    async fn open(&self) -> Result<Box<Connection>, UpstreamError> {
        let opened = self.limits.open(&self.url, &self.host, Offer::Http1);
        let (io, peer) = opened.await?;
        Ok(Box::new(Connection::new(io, peer)))
    }

    fn idle(&self, lane: Lane) -> Option<MutexGuard<'_, Vec<Idle>>> {
        lane.of(&self.lanes).map(lock)
    }
}

fn lock(idle: &Mutex<Vec<Idle>>) -> MutexGuard<'_, Vec<Idle>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
