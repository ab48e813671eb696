//! The bootstrap server of a prefill worker.

use std::io;
use std::net;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::protocol::{Message, read_line};
use super::rooms::Rooms;

/// Delay before a failed accept is retried.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(10);
/// Header lines of an HTTP request that are read.
const MAX_HEADERS: usize = 100;

/// A server that runs until dropped.
#[derive(Debug)]
pub(crate) struct BootstrapServer {
    pub(crate) port: u16,
    task: AbortHandle,
}

impl BootstrapServer {
    /// Starts to serve; needs a runtime.
    pub(crate) fn start(listener: net::TcpListener, rooms: &Arc<Rooms>) -> io::Result<Self> {
        let port = listener.local_addr()?.port();
        let accepting = accept(TcpListener::from_std(listener)?, Arc::clone(rooms));
        let task = tokio::spawn(accepting).abort_handle();
        Ok(Self { port, task })
    }
}

impl Drop for BootstrapServer {
    fn drop(&mut self) {
        self.task.abort(); // closes every connection, too
    }
}

async fn accept(listener: TcpListener, rooms: Arc<Rooms>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let rooms = Arc::clone(&rooms);
                    connections.spawn(async move { serve(stream, &rooms).await });
                }
                Err(_) => sleep(ACCEPT_RETRY_DELAY).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, rooms: &Arc<Rooms>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let first = read_line(&mut stream).await?;
    let Some(Message::Join { room }) = Message::parse(&first) else {
        return answer_http(&mut stream, &first).await;
    };
    let mut joined = rooms.join(room);
    send(&mut stream, Message::Joined).await?;
    loop {
        tokio::select! {
            kv = joined.kv_cache() => send(&mut stream, Message::Kv(kv)).await?,
            line = read_line(&mut stream) => {
                if Message::parse(&line?) == Some(Message::Abort) {
                    joined.abort();
                }
                return Ok(());
            }
        }
    }
}

async fn send(stream: &mut BufReader<TcpStream>, message: Message) -> io::Result<()> {
    stream.write_all(message.line().as_bytes()).await
}

/// Answers `GET /health`; any other request is 404.
async fn answer_http(stream: &mut BufReader<TcpStream>, first: &str) -> io::Result<()> {
    skip_headers(stream).await?;
    let status = if first.starts_with("GET /health ") {
        "200 OK"
    } else {
        "404 Not Found"
    };
    let response = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

async fn skip_headers(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<()> {
    for _ in 0..MAX_HEADERS {
        if read_line(stream).await?.trim().is_empty() {
            return Ok(());
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}
