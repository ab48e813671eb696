//! Listening sockets, bound before anything else starts.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
#[cfg(target_os = "linux")]
use socket2::{SockFilter, SockRef};
use tokio::net::TcpListener as TokioListener;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::error::StartError;
use crate::config::Options;
use crate::fleet::Fleet;
use crate::server::Listeners;

/// Connections the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;
/// Metrics port when none was asked for.
const METRICS_PORT: u16 = 29_000;
/// Longest wait for a ready worker before a port that is shared is listened on nevertheless.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked whether there is one.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The metrics listeners, as the options ask for them; none where the default port is taken.
pub(super) fn metrics(options: &Options) -> Result<Vec<TcpListener>, StartError> {
    let (host, sharing) = (metrics_host(options), Sharing::from(options));
    let listen = |port| {
        let sockets = on("metrics", host, port, sharing)?;
        sockets.into_iter().map(listening).collect()
    };
    if let Some(port) = options.prometheus_port {
        return listen(port);
    }
    // The port is a default, so another process having it is no reason not to start.
    let listeners = listen(METRICS_PORT);
    if let Err(error) = &listeners {
        warn!(%error, "no metrics: set prometheus_port to have them elsewhere");
    }
    Ok(listeners.unwrap_or_default())
}

/// The metrics host, in the address family of the gateway's: where that is IPv6, all addresses
/// include those of IPv6.
fn metrics_host(options: &Options) -> &str {
    let host = options.host.trim_matches(['[', ']']);
    let over_v6 = host.parse::<Ipv6Addr>().is_ok();
    match options.prometheus_host.as_deref() {
        Some("0.0.0.0") if over_v6 => "::",
        Some(host) => host,
        None if over_v6 => "::1",
        None => "127.0.0.1",
    }
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
    /// One for each address of the host; never empty.
    sockets: Vec<Socket>,
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
        let sockets = on("the gateway", &options.host, options.port, sharing)?;
        if sharing == Sharing::Exclusive {
            for socket in &sockets {
                let listened = socket.listen(BACKLOG);
                listened.map_err(|error| StartError::environment("listen", error))?;
            }
        }
        Ok(Self { sockets, sharing })
    }

    /// Whether another process may listen on it, too.
    pub(super) fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Where it is bound: the first address of its host.
    pub(super) fn addr(&self) -> Result<SocketAddr, StartError> {
        let first = self.sockets.first().ok_or(io::ErrorKind::NotFound.into());
        let addr = first.and_then(Socket::local_addr);
        let addr = addr.and_then(|addr| addr.as_socket().ok_or(io::ErrorKind::Unsupported.into()));
        addr.map_err(|error| StartError::environment("read a listener's address", error))
    }

    /// Listens; where the port is shared, only once this process can serve.
    pub(super) async fn listen(self, fleet: &Fleet) -> io::Result<Listeners> {
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
            for socket in &self.sockets {
                socket.listen(BACKLOG)?;
            }
        }
        let sockets = self.sockets.into_iter();
        let listeners = sockets.map(|socket| TokioListener::from_std(socket.into()));
        Ok(Listeners(listeners.collect::<io::Result<_>>()?))
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

/// Sockets bound to every address of a host name, or to one address (IPv6 with or without
/// brackets). Port 0 is the same free port for all.
fn on(what: &str, host: &str, port: u16, sharing: Sharing) -> Result<Vec<Socket>, StartError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let failed = |error: io::Error| {
        StartError::environment(format!("listen for {what} on {host}:{port}"), error)
    };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in (bare, port).to_socket_addrs().map_err(failed)? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    bind_all(&addresses, sharing).map_err(failed)
}

/// Binds what can be bound: a name may have an address of a family that this machine lacks.
fn bind_all(addresses: &[SocketAddr], sharing: Sharing) -> io::Result<Vec<Socket>> {
    let (mut sockets, mut port) = (Vec::new(), None);
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for &address in addresses {
        let mut address = address;
        address.set_port(port.unwrap_or(address.port()));
        match bind(address, sharing) {
            Ok(socket) => {
                let bound = socket.local_addr()?.as_socket();
                port = port.or(bound.map(|bound| bound.port()));
                sockets.push(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => failure = error,
            Err(error) if is_unsupported(&error) => failure = error,
            Err(error) => return Err(error),
        }
    }
    if sockets.is_empty() {
        return Err(failure);
    }
    Ok(sockets)
}

/// Whether the machine lacks the address family.
fn is_unsupported(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT)
}

fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sharing == Sharing::Shared)?;
    if address.is_ipv6() {
        // `::` takes IPv4, too; another address leaves IPv4 to a socket of its own.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn every_address_is_bound_to_the_same_free_port() {
        let sockets = bind_all(
            &addresses(&["127.0.0.1:0", "127.0.0.2:0"]),
            Sharing::Exclusive,
        );
        let bound = sockets.unwrap();
        let bound: Vec<_> = bound
            .iter()
            .map(|socket| socket.local_addr().unwrap().as_socket().unwrap())
            .collect();
        assert_eq!(bound.len(), 2);
        assert_eq!(bound[0].port(), bound[1].port());
        assert_ne!(bound[0].ip(), bound[1].ip());
    }

    #[test]
    fn address_that_the_machine_lacks_is_left_out_unless_it_is_the_only_one() {
        let lacking = "192.0.2.1:0";
        let sockets = bind_all(&addresses(&[lacking, "127.0.0.1:0"]), Sharing::Exclusive);
        assert_eq!(sockets.unwrap().len(), 1);
        let error = bind_all(&addresses(&[lacking]), Sharing::Exclusive).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn metrics_follow_the_family_of_the_host() {
        for (host, metrics, expected) in [
            ("::", Some("0.0.0.0"), "::"),
            ("[::]", None, "::1"),
            ("0.0.0.0", Some("0.0.0.0"), "0.0.0.0"),
            ("0.0.0.0", None, "127.0.0.1"),
            ("::", Some("10.0.0.1"), "10.0.0.1"),
        ] {
            let options = Options {
                host: host.to_owned(),
                prometheus_host: metrics.map(str::to_owned),
                ..Options::default()
            };
            assert_eq!(metrics_host(&options), expected, "{host} {metrics:?}");
        }
    }
}
