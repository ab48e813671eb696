//! How connections to workers are made and kept.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::address::{Host, Resolver, connect};
use super::error::UpstreamError;
use super::io::Io;
use super::tls::{Offer, WorkerTls};
use crate::config::{ConnectionSection, Scheme, WorkerUrl};

/// How connections to workers are made and kept.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimits {
    /// Longest idle time.
    pub(super) max_idle_time: Duration,
    /// Idle connections kept per worker and lane.
    pub(super) max_idle: usize,
    /// Workers that offer HTTP/2 are spoken to in it.
    pub(super) http2: bool,
    connect_timeout: Duration,
    keepalive: TcpKeepalive,
    /// How long sent bytes or keep-alive probes may stay without an answer (RFC 5482).
    unanswered: Duration,
    pub(super) lanes: usize,
    pub(super) resolver: Resolver,
    pub(super) tls: Arc<WorkerTls>,
}

impl ConnectionLimits {
    /// Limits for a gateway of so many lanes.
    pub(crate) fn new(options: &ConnectionSection, lanes: usize) -> Self {
        let lanes = lanes.max(1);
        Self {
            max_idle_time: options.idle_timeout,
            max_idle: options.max_idle_per_host.div_ceil(lanes),
            http2: options.http2,
            connect_timeout: options.connect_timeout,
            keepalive: TcpKeepalive::new()
                .with_time(options.tcp_keepalive)
                .with_interval(options.tcp_keepalive),
            unanswered: options.tcp_keepalive * 2,
            lanes,
            resolver: Resolver::default(),
            tls: Arc::default(),
        }
    }

    /// The same, with names looked up by `resolver`.
    pub(crate) fn with_resolver(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    /// The same, with this trust in `https://` workers.
    pub(crate) fn with_tls(self, tls: Arc<WorkerTls>) -> Self {
        Self { tls, ..self }
    }

    /// A new connection to one of a host's addresses, over TLS where the URL says so; `offer` is
    /// what it may carry then.
    pub(super) async fn open(
        &self,
        url: &WorkerUrl,
        host: &Arc<Host>,
        offer: Offer,
    ) -> Result<(Io, IpAddr), UpstreamError> {
        let limit = self.connect_timeout;
        let deadline = Instant::now() + limit;
        let (stream, peer) = connect(host, url.port(), limit).await?;
        self.prepare(&stream).map_err(UpstreamError::connect)?;
        let io = match url.scheme() {
            Scheme::Http => Io::Tcp(stream),
            Scheme::Https => {
                let connecting = self.tls.connect(url, stream, offer);
                let connected = timeout_at(deadline, connecting).await;
                let late = |_| UpstreamError::connect(io::ErrorKind::TimedOut.into());
                Io::Tls(Box::new(connected.map_err(late)??))
            }
        };
        Ok((io, peer))
    }

    /// Sets what holds for the socket of a new connection.
    fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.unanswered))?;
        socket.set_tcp_keepalive(&self.keepalive)
    }
}
