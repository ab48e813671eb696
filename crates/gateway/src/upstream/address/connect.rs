//! A connection to one of a host's addresses (Happy Eyeballs, RFC 8305).

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::host::Host;
use crate::upstream::error::UpstreamError;

/// Pause before the next address is tried beside those that have not answered (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Longest wait for the name's other addresses: another worker may be waiting for the request.
const REFRESH_WAIT: Duration = Duration::from_millis(500);

/// Connects within `limit`, the look-up included; gives the address with the connection.
///
/// # Errors
/// [`UpstreamError::NameLookup`] without an address, otherwise what the last address said.
pub(in crate::upstream) async fn connect(
    host: &Arc<Host>,
    port: u16,
    limit: Duration,
) -> Result<(TcpStream, IpAddr), UpstreamError> {
    let deadline = Instant::now() + limit;
    let found = timeout_at(deadline, host.addresses()).await;
    let addresses = found.map_err(|_| UpstreamError::slow_lookup())??;
    let failed = match timeout_at(deadline, race(host, port, &addresses)).await {
        Ok(Ok(connected)) => return Ok(connected),
        Ok(Err(error)) => error,
        Err(_) => {
            for &ip in &addresses {
                host.demote(ip);
            }
            return Err(UpstreamError::connect(io::ErrorKind::TimedOut.into()));
        }
    };
    // None of the addresses known is right: the name may have others by now.
    let enough = deadline.min(Instant::now() + REFRESH_WAIT);
    let refreshed = timeout_at(enough, host.refresh()).await;
    if let (Ok(()), Ok(now)) = (refreshed, host.addresses().await) {
        let new: Vec<_> = now
            .into_iter()
            .filter(|ip| !addresses.contains(ip))
            .collect();
        let left = deadline.saturating_duration_since(Instant::now());
        if let Ok(Ok(connected)) = timeout(left, race(host, port, &new)).await {
            return Ok(connected);
        }
    }
    Err(UpstreamError::connect(failed))
}

/// Tries the addresses in order; the next as soon as one fails, or beside it after a while.
async fn race(
    host: &Arc<Host>,
    port: u16,
    addresses: &[IpAddr],
) -> io::Result<(TcpStream, IpAddr)> {
    if let [ip] = addresses {
        let connected = TcpStream::connect((*ip, port)).await;
        return connected.map(|stream| (stream, *ip));
    }
    let (mut rest, mut attempts, mut pending) = (addresses.iter(), JoinSet::new(), Vec::new());
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(&ip) = rest.next() {
            pending.push(ip);
            attempts.spawn(async move { (ip, TcpStream::connect((ip, port)).await) });
        }
        let more = rest.len() > 0;
        let ended = tokio::select! {
            ended = attempts.join_next() => ended,
            () = sleep(ATTEMPT_DELAY), if more => continue,
        };
        match ended {
            Some(Ok((ip, Ok(stream)))) => {
                // Those before it have had more time, and no answer.
                let slower = pending.iter().take_while(|&&other| other != ip);
                for &other in slower {
                    host.demote(other);
                }
                host.connected(ip);
                return Ok((stream, ip));
            }
            Some(Ok((ip, Err(error)))) => {
                pending.retain(|&other| other != ip);
                host.demote(ip);
                failure = error;
            }
            Some(Err(_)) => {}
            None if more => {}
            None => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    use super::super::resolver::Resolver;
    use super::*;
    use routing::Outcome;

    const LIMIT: Duration = Duration::from_secs(5);

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, last).into()
    }

    /// A socket that takes no connections: its queue is full, so the system drops SYNs.
    struct BlackHole {
        port: u16,
        _listener: Socket,
        _clients: Vec<Socket>,
    }

    impl BlackHole {
        fn new(at: IpAddr) -> Self {
            let tcp = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let listener = tcp();
            listener
                .bind(&std::net::SocketAddr::new(at, 0).into())
                .unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap();
            let clients = (0..4).map(|_| {
                let client = tcp();
                client.set_nonblocking(true).unwrap();
                let _ = client.connect(&address);
                client
            });
            Self {
                port: address.as_socket().unwrap().port(),
                _clients: clients.collect(),
                _listener: listener,
            }
        }
    }

    #[tokio::test]
    async fn second_address_is_used_when_the_first_swallows_packets_and_goes_first_then() {
        let hole = BlackHole::new(ip(2));
        let _listener = TcpListener::bind((ip(3), hole.port)).await.unwrap();
        let resolver = Resolver::with(None, |_| Box::pin(async { Ok(vec![ip(2), ip(3)]) }));
        let host = resolver.host("w");
        let begun = Instant::now();
        let (_, connected) = connect(&host, hole.port, LIMIT).await.unwrap();
        assert_eq!(connected, ip(3));
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(host.addresses().await.unwrap(), [ip(3), ip(2)]);
    }

    #[tokio::test]
    async fn second_address_is_tried_at_once_when_the_first_refuses() {
        let listener = TcpListener::bind((ip(3), 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let resolver = Resolver::with(None, |_| Box::pin(async { Ok(vec![ip(2), ip(3)]) }));
        let (_, connected) = connect(&resolver.host("w"), port, LIMIT).await.unwrap();
        assert_eq!(connected, ip(3));
    }

    #[tokio::test]
    async fn host_whose_addresses_all_refuse_is_not_connected() {
        let free = TcpListener::bind((ip(2), 0))
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let resolver = Resolver::with(None, |_| Box::pin(async { Ok(vec![ip(2), ip(3)]) }));
        let error = connect(&resolver.host("w"), free.port(), LIMIT)
            .await
            .unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotConnected);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_or_slow_look_up_blames_no_worker() {
        let failing = Resolver::with(None, |_| Box::pin(async { Ok(vec![]) }));
        let slow = Resolver::with(None, |_| Box::pin(std::future::pending()));
        for resolver in [failing, slow] {
            let error = connect(&resolver.host("w"), 1, LIMIT).await.unwrap_err();
            assert!(matches!(error, UpstreamError::NameLookup(_)), "{error}");
            assert_eq!(error.outcome(), Outcome::Local);
        }
    }
}
