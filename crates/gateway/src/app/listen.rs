//! Listening sockets, bound before anything else starts.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use super::StartError;
use crate::config::Options;

/// Connections the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;
/// Metrics port when none was asked for.
const METRICS_PORT: u16 = 29_000;

/// The metrics listener, as the options ask for it.
pub(super) fn metrics(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let host = options.prometheus_host.as_deref().unwrap_or("127.0.0.1");
    if let Some(port) = options.prometheus_port {
        return on("metrics", host, port).map(Some);
    }
    // Nobody asked for this port, so somebody else having it is no reason not to start.
    let listener = on("metrics", host, METRICS_PORT);
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

/// Listens on a host name or address (IPv6 with or without brackets).
pub(super) fn on(what: &str, host: &str, port: u16) -> Result<TcpListener, StartError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let failed = |error: io::Error| {
        StartError::environment(format!("listen for {what} on {host}:{port}"), error)
    };
    let addr = (bare, port).to_socket_addrs().map_err(failed)?.next();
    let addr = addr.ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
    let bind = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() && addr.ip().is_unspecified() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    bind().map_err(failed)
}
