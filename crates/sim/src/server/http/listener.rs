//! Accepting connections and serving them.

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use super::wire::{ConnectionControl, Wire};
use crate::server::api::dispatch::Dispatcher;
use crate::server::runtime::request_log::{decrement, increment};
use crate::server::runtime::worker::Worker;

/// Delay before a failed accept (no file descriptors left, for example) is retried.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Accepts until dropped.
pub(crate) async fn accept(worker: Arc<Worker>, listener: TcpListener) {
    let dispatcher = Arc::new(Dispatcher::new(&worker));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        let number = increment(&worker.counts.connections);
        if worker.faults.refuses_connection() {
            reset(&stream);
            continue;
        }
        let _ = stream.set_nodelay(true);
        let connection = OpenConnection::new(&worker, number);
        tokio::spawn(serve(Arc::clone(&dispatcher), connection, stream));
    }
}

/// Makes the close a reset instead of an orderly end.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Counts a connection as open while it lives.
struct OpenConnection {
    worker: Arc<Worker>,
    control: Arc<ConnectionControl>,
}

impl OpenConnection {
    fn new(worker: &Arc<Worker>, number: u64) -> Self {
        increment(&worker.counts.connections_open);
        Self {
            worker: Arc::clone(worker),
            control: Arc::new(ConnectionControl::new(number)),
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        decrement(&self.worker.counts.connections_open);
    }
}

async fn serve(dispatcher: Arc<Dispatcher>, connection: OpenConnection, stream: TcpStream) {
    let io = TokioIo::new(Wire::new(stream, Arc::clone(&connection.control)));
    let service = service_fn(|request| {
        Arc::clone(&dispatcher).respond(Arc::clone(&connection.control), request)
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None);
    // The counts show how a connection ended.
    let _ = server.serve_connection(io, service).await;
}
