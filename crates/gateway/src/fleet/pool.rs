//! The connections to one worker: idle ones kept per lane, new ones opened on demand.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::config::{Options, WorkerUrl};
use crate::wire::{Connection, RequestHead, ResponseHead, UpstreamError};

/// A kept connection that ends within this time was closed before the worker saw the request.
const DIED_UNSEEN: Duration = Duration::from_secs(1);

/// How connections to workers are kept.
#[derive(Clone, Debug)]
pub(crate) struct PoolLimits {
    /// Longest idle time.
    idle: Duration,
    /// Idle connections kept per worker and lane.
    most: usize,
    connect_timeout: Duration,
    keepalive: TcpKeepalive,
    lanes: usize,
}

impl PoolLimits {
    /// Limits as the options ask for, for a gateway of so many lanes.
    pub(crate) fn new(options: &Options, lanes: usize) -> Self {
        let keepalive = Duration::from_secs(options.tcp_keepalive_secs);
        Self {
            idle: Duration::from_secs(options.pool_idle_timeout_secs),
            most: options.pool_max_idle_per_host.div_ceil(lanes.max(1)),
            connect_timeout: Duration::from_secs(options.connect_timeout_secs),
            keepalive: TcpKeepalive::new()
                .with_time(keepalive)
                .with_interval(keepalive),
            lanes,
        }
    }
}

/// The connections to one worker. A connection stays on the lane that opened it.
#[derive(Debug)]
pub(crate) struct Connections {
    url: WorkerUrl,
    limits: Arc<PoolLimits>,
    lanes: Vec<Mutex<Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A response head, and the connection its body comes from.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) head: ResponseHead,
    pub(crate) connection: Connection,
}

impl Connections {
    pub(crate) fn new(url: WorkerUrl, limits: Arc<PoolLimits>) -> Self {
        let lanes = (0..limits.lanes.max(1)).map(|_| Mutex::default()).collect();
        Self { url, limits, lanes }
    }

    /// Sends a request over an idle connection, or a new one.
    ///
    /// A kept connection may have died unseen: when it ends at once, before the first byte of
    /// a response, the request goes out once more on a fresh one. A worker that closes later
    /// had the request and may have run it.
    pub(crate) async fn send(
        &self,
        lane: usize,
        head: &RequestHead,
        body: &Bytes,
    ) -> Result<Exchange, UpstreamError> {
        if let Some(mut connection) = self.take(lane) {
            let sent = Instant::now();
            match connection.exchange(head, body).await {
                Ok(head) => return Ok(Exchange { head, connection }),
                Err(UpstreamError::NoResponse) if sent.elapsed() < DIED_UNSEEN => {}
                Err(error) => return Err(error),
            }
        }
        let mut connection = self.open().await.map_err(UpstreamError::Connect)?;
        let head = connection.exchange(head, body).await?;
        Ok(Exchange { head, connection })
    }

    /// Keeps a connection whose response has been read to its end.
    pub(crate) fn keep(&self, lane: usize, connection: Connection) {
        let mut idle = self.lane(lane);
        if idle.len() < self.limits.most {
            idle.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Closes what has been idle for too long or was closed by the worker.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        for lane in 0..self.lanes.len() {
            self.lane(lane).retain(|idle| {
                now.duration_since(idle.since) < self.limits.idle && idle.connection.is_quiet()
            });
        }
    }

    fn take(&self, lane: usize) -> Option<Connection> {
        loop {
            let idle = self.lane(lane).pop()?;
            if idle.connection.is_quiet() {
                return Some(idle.connection);
            }
        }
    }

    async fn open(&self) -> io::Result<Connection> {
        let connect = TcpStream::connect((self.url.host(), self.url.port()));
        let stream = timeout(self.limits.connect_timeout, connect)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&self.limits.keepalive)?;
        Ok(Connection::new(stream))
    }

    fn lane(&self, lane: usize) -> MutexGuard<'_, Vec<Idle>> {
        let lanes = &self.lanes;
        lanes[lane % lanes.len()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
