//! The sockets on which clients connect: one for each address of the gateway's host.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::task::Poll;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// Listening sockets, accepted from as if they were one.
#[derive(Debug)]
pub(crate) struct Listeners(pub(crate) Vec<TcpListener>);

impl Drop for Listeners {
    /// Ends listening for every holder of the sockets: a forked child may have inherited them,
    /// and clients that connect would wait for it in vain.
    fn drop(&mut self) {
        for listener in &self.0 {
            let ended = SockRef::from(listener).shutdown(Shutdown::Both);
            if let Err(error) = ended {
                debug!(%error, "cannot end listening");
            }
        }
    }
}

impl Listeners {
    /// Whether only this machine can connect.
    pub(crate) fn are_local(&self) -> bool {
        let mut addresses = self.0.iter().map(TcpListener::local_addr);
        addresses.all(|address| address.is_ok_and(|address| address.ip().is_loopback()))
    }

    /// The next connection at any of them.
    pub(crate) async fn accept(&self) -> io::Result<TcpStream> {
        poll_fn(|cx| {
            for listener in &self.0 {
                if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                    return Poll::Ready(accepted.map(|(stream, _)| stream));
                }
            }
            Poll::Pending
        })
        .await
    }
}
