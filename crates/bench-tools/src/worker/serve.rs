//! Listening, on several ports by one thread.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::connection;
use super::options::WorkerOptions;
use super::replies::Replies;
use crate::error::BenchError;

const BACKLOG: i32 = 4096;

/// Mock workers that listen but do not answer yet.
#[derive(Debug)]
pub struct MockWorkers {
    listeners: Vec<TcpListener>,
    replies: Rc<Replies>,
    lifetime: Duration,
}

/// Listens on every port; a port that is taken is an error. Needs a tokio runtime.
pub fn bind(options: &WorkerOptions) -> Result<MockWorkers, BenchError> {
    let listeners: Result<_, BenchError> = options.ports.iter().map(|port| listen(*port)).collect();
    Ok(MockWorkers {
        listeners: listeners?,
        replies: Rc::new(Replies::new(options)),
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
            connections.spawn_local(accept(listener, Rc::clone(&self.replies)));
        }
        // Accepting never ends by itself.
        let _ = timeout(self.lifetime, connections).await;
    }
}

async fn accept(listener: TcpListener, replies: Rc<Replies>) {
    loop {
        // A connection that was reset before it was accepted is no reason to end.
        if let Ok((stream, _)) = listener.accept().await {
            spawn_local(connection::serve(stream, Rc::clone(&replies)));
        }
    }
}
