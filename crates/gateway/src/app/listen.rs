//! Listening sockets, bound before anything else starts.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
#[cfg(target_os = "linux")]
use socket2::{SockFilter, SockRef};
use tokio::net::TcpListener as TokioListener;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::error::StartError;
use crate::config::Options;
use crate::fleet::Fleet;

/// Connections the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;
/// Metrics port when none was asked for.
const METRICS_PORT: u16 = 29_000;
/// Longest wait for a ready worker before a port that is shared is listened on nevertheless.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked whether there is one.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The metrics listener, as the options ask for it.
pub(super) fn metrics(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let host = options.prometheus_host.as_deref().unwrap_or("127.0.0.1");
    if let Some(port) = options.prometheus_port {
        return on("metrics", host, port, Sharing::from(options))
            .and_then(listening)
            .map(Some);
    }
    // The port is a default, so another process having it is no reason not to start.
    let listener = on("metrics", host, METRICS_PORT, Sharing::from(options)).and_then(listening);
    if let Err(error) = &listener {
        warn!(%error, "no metrics: set prometheus_port to have them elsewhere");
    }
    Ok(listener.ok())
}

/// Where a listener listens.
pub(super) fn local_addr(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener
        .local_addr()
        .map_err(|error| StartError::environment("read a listener's address", error))
}

/// The gateway's own port.
#[derive(Debug)]
pub(super) struct Port {
    socket: Socket,
    sharing: Sharing,
}

/// Whether another process may listen on a port, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    Exclusive,
    Shared,
}

impl From<&Options> for Sharing {
    fn from(options: &Options) -> Self {
        if options.reuse_port {
            Self::Shared
        } else {
            Self::Exclusive
        }
    }
}

impl Port {
    /// Binds the port. One that is shared is not listened on yet: from that moment the system
    /// gives this process its part of the connections, and no worker may be ready for them.
    pub(super) fn bind(options: &Options) -> Result<Self, StartError> {
        let sharing = Sharing::from(options);
        let mut socket = on("the gateway", &options.host, options.port, sharing)?;
        if sharing == Sharing::Exclusive {
            socket = listening(socket)?.into();
        }
        Ok(Self { socket, sharing })
    }

    /// Whether another process may listen on it, too.
    pub(super) fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Where it is bound.
    pub(super) fn addr(&self) -> Result<SocketAddr, StartError> {
        let addr = self.socket.local_addr();
        let addr = addr.and_then(|addr| addr.as_socket().ok_or(io::ErrorKind::Unsupported.into()));
        addr.map_err(|error| StartError::environment("read a listener's address", error))
    }

    /// Listens; where the port is shared, only once this process can serve.
    pub(super) async fn listen(self, fleet: &Fleet) -> io::Result<TokioListener> {
        if self.sharing == Sharing::Shared {
            let able = async {
                // A gateway without workers gets them through this port.
                while fleet.ready_count() == 0 && !fleet.workers().is_empty() {
                    sleep(READY_POLL_INTERVAL).await;
                }
            };
            if timeout(READY_TIMEOUT, able).await.is_err() {
                warn!("no worker is ready, listening on the shared port nevertheless");
            }
            self.socket.listen(BACKLOG)?;
        }
        TokioListener::from_std(self.socket.into())
    }
}

/// Has the system ignore requests for new connections at this listener, but finish those
/// it has begun. A client that is ignored asks again within a second (RFC 6298 §2.1), and then
/// only the other process on the shared port is left to answer.
#[cfg(target_os = "linux")]
pub(super) fn ignore_new_connections(listener: &TokioListener) -> io::Result<()> {
    // On the TCP header: SYN without ACK is dropped, everything else passes.
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(0x30, 0, 0, 13),       // load the byte of flags
        SockFilter::new(0x54, 0, 0, 0x12),     // keep SYN and ACK
        SockFilter::new(0x15, 0, 1, 0x02),     // SYN alone?
        SockFilter::new(0x06, 0, 0, 0),        // drop
        SockFilter::new(0x06, 0, 0, u32::MAX), // pass
    ])
}

/// Other systems have no such filter; a client may meet a port that closes.
#[cfg(not(target_os = "linux"))]
pub(super) fn ignore_new_connections(_listener: &TokioListener) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn listening(socket: Socket) -> Result<TcpListener, StartError> {
    let listened = socket.listen(BACKLOG);
    listened.map_err(|error| StartError::environment("listen", error))?;
    Ok(socket.into())
}

/// A socket bound to a host name or address (IPv6 with or without brackets).
fn on(what: &str, host: &str, port: u16, sharing: Sharing) -> Result<Socket, StartError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let failed = |error: io::Error| {
        StartError::environment(format!("listen for {what} on {host}:{port}"), error)
    };
    let addr = (bare, port).to_socket_addrs().map_err(failed)?.next();
    let addr = addr.ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(sharing == Sharing::Shared)?;
        if addr.is_ipv6() && addr.ip().is_unspecified() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    bind().map_err(failed)
}
