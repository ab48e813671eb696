//! Listening, on several ports by one thread.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection;
use super::options::WorkerOptions;
use super::replies::Replies;
use crate::error::BenchError;
use crate::tls;

const BACKLOG: i32 = 4096;

/// Mock workers that listen but do not answer yet.
#[derive(Debug)]
pub struct MockWorkers {
    listeners: Vec<TcpListener>,
    replies: Rc<Replies>,
    tls: Option<Arc<ServerConfig>>,
    lifetime: Duration,
}

/// Listens on every port; a port that is taken is an error. Needs a tokio runtime.
pub fn bind(options: &WorkerOptions) -> Result<MockWorkers, BenchError> {
    let listeners: Result<_, BenchError> = options.ports.iter().map(|port| listen(*port)).collect();
    Ok(MockWorkers {
        listeners: listeners?,
        replies: Rc::new(Replies::new(options)),
        tls: match &options.tls {
            None => None,
            Some((certificate, key)) => Some(tls::server(certificate, key)?),
        },
        lifetime: Duration::from_secs(options.lifetime_s.into()),
    })
}

fn listen(port: u16) -> Result<TcpListener, BenchError> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Connections of an earlier run may still be in TIME_WAIT; a port with a listener stays taken.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into())?)
}

impl MockWorkers {
    /// The ports that are listened on, in the order of the options.
    pub fn ports(&self) -> Result<Vec<u16>, BenchError> {
        let addresses = self.listeners.iter().map(TcpListener::local_addr);
        addresses.map(|address| Ok(address?.port())).collect()
    }

    /// Answers until the lifetime is over.
    pub async fn serve(self) {
        let connections = LocalSet::new();
        for listener in self.listeners {
            let (replies, tls) = (Rc::clone(&self.replies), self.tls.clone());
            connections.spawn_local(accept(listener, replies, tls));
        }
        // Accepting never ends by itself.
        let _ = timeout(self.lifetime, connections).await;
    }
}

async fn accept(listener: TcpListener, replies: Rc<Replies>, tls: Option<Arc<ServerConfig>>) {
    loop {
        // A connection that was reset before it was accepted is no reason to end.
        if let Ok((stream, _)) = listener.accept().await {
            spawn_local(serve(stream, Rc::clone(&replies), tls.clone()));
        }
    }
}

async fn serve(
    stream: TcpStream,
    replies: Rc<Replies>,
    tls: Option<Arc<ServerConfig>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => connection::serve(stream, replies).await,
        Some(tls) => connection::serve(TlsAcceptor::from(tls).accept(stream).await?, replies).await,
    }
}
