//! A client that sees every byte.

use std::fmt::Debug;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::reply::Reply;
use crate::requests::{generate, posting};
use crate::wait::in_time;

/// What carries a client's bytes.
trait Stream: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin> Stream for T {}

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

/// POSTs JSON on a connection of its own.
pub async fn post(server: impl Into<SocketAddr>, path: &str, body: &str) -> Reply {
    raw(server, &posting(path, "", body)).await
}

/// GETs on a connection of its own.
pub async fn get(server: impl Into<SocketAddr>, path: &str) -> Reply {
    let request = format!("GET {path} HTTP/1.1\r\nhost: g\r\n\r\n");
    raw(server, request.as_bytes()).await
}

/// Sends these bytes on a connection of its own, and reads one reply.
pub async fn raw(server: impl Into<SocketAddr>, bytes: &[u8]) -> Reply {
    let mut client = Client::to(server).await;
    client.send(bytes).await;
    client.reply().await
}

/// Sends these bytes on a connection of its own, and reads the head of one reply: its body may have
/// no end.
pub async fn head_of(server: impl Into<SocketAddr>, bytes: &[u8]) -> Reply {
    let mut client = Client::to(server).await;
    client.send(bytes).await;
    let head = client.head().await.ok().flatten();
    head.unwrap_or_else(|| panic!("closed before a head: {:?}", client.buffer))
}

impl Client {
    /// A client that has connected to a server.
    pub async fn to(server: impl Into<SocketAddr>) -> Self {
        Self::over(TcpStream::connect(server.into()).await.unwrap())
    }

    /// A client over what has been connected already, TLS for example.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Debug + Send + Unpin + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            buffer: Vec::new(),
        }
    }

    /// A client that has sent [`generate`] with these header lines.
    pub async fn asking(server: impl Into<SocketAddr>, lines: &str) -> Self {
        let mut client = Self::to(server).await;
        client.send(&generate(lines)).await;
        client
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: &[u8]) {
        // The server may refuse and stop reading before all is sent.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// Reads one whole reply.
    pub async fn reply(&mut self) -> Reply {
        let reply = self.try_reply().await;
        reply.unwrap_or_else(|| panic!("closed before a reply: {:?}", self.buffer))
    }

    /// Reads one whole reply; `None` when the connection ends before its head does.
    pub async fn try_reply(&mut self) -> Option<Reply> {
        let reading = async {
            let mut reply = self.read_head().await.ok().flatten()?;
            // A body ends with a reset as with a close: it is not whole.
            let _ = self.read_body(&mut reply).await;
            Some(reply)
        };
        in_time("no reply", reading).await
    }

    /// Reads status and headers; `None` when the connection is closed before their end.
    ///
    /// # Errors
    /// A connection that is reset, and bytes that are not HTTP.
    pub async fn head(&mut self) -> Result<Option<Reply>> {
        in_time("no head", self.read_head()).await
    }

    /// Reads the body of a reply up to its end or the end of the connection.
    ///
    /// # Errors
    /// A connection that is reset.
    pub async fn body(&mut self, reply: &mut Reply) -> Result<()> {
        in_time("no end of a body", self.read_body(reply)).await
    }

    /// Reads the next chunk of a chunked body, empty for the last; `None` at the end of the connection.
    ///
    /// # Errors
    /// A connection that is reset.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        in_time("no chunk", self.read_chunk()).await
    }

    /// Reads until `marker` has come; gives everything read so far.
    pub async fn read_until(&mut self, marker: &str) -> String {
        let reading = async {
            while !String::from_utf8_lossy(&self.buffer).contains(marker) {
                let open = self.fill().await.unwrap_or_default();
                assert!(open, "closed before {marker:?}");
            }
        };
        in_time(&format!("no {marker:?}"), reading).await;
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Whether the server closed the connection, in whatever way.
    pub async fn closed(&mut self) -> bool {
        !in_time("no end of the connection", self.fill())
            .await
            .unwrap_or_default()
    }

    async fn read_head(&mut self) -> Result<Option<Reply>> {
        let Some(first) = self.line().await? else {
            return Ok(None);
        };
        let mut reply = Reply {
            status: status(&first).ok_or_else(|| nonsense(&first))?,
            ..Reply::default()
        };
        while let Some(line) = self.line().await? {
            if line.is_empty() {
                return Ok(Some(reply));
            }
            let (name, value) = line.split_once(": ").ok_or_else(|| nonsense(&line))?;
            reply.headers.push((name.to_owned(), value.to_owned()));
        }
        Ok(None)
    }

    async fn read_body(&mut self, reply: &mut Reply) -> Result<()> {
        if reply.header("transfer-encoding") == "chunked" {
            while let Some(chunk) = self.read_chunk().await? {
                reply.body.extend_from_slice(&chunk);
                if chunk.is_empty() {
                    reply.whole = true;
                    break;
                }
            }
            return Ok(());
        }
        // Without framing there is no body: a reply that ends with its connection is not expected.
        let length = reply.header("content-length").parse().unwrap_or(0);
        let read = self.need(length).await;
        let available = length.min(self.buffer.len());
        reply.body.extend(self.buffer.drain(..available));
        reply.whole = read?;
        Ok(())
    }

    async fn read_chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(line) = self.line().await? else {
            return Ok(None);
        };
        let size = usize::from_str_radix(&line, 16).expect("a chunk's size");
        if !self.need(size + 2).await? {
            return Ok(None);
        }
        Ok(Some(self.buffer.drain(..size + 2).take(size).collect()))
    }

    /// The next line without its end; `None` when the connection is closed before that.
    async fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return Ok(Some(String::from_utf8(line).expect("UTF-8")));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads until this many bytes wait; false when the connection is closed before that.
    async fn need(&mut self, length: usize) -> Result<bool> {
        while self.buffer.len() < length {
            if !self.fill().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads once; false when the connection is closed.
    async fn fill(&mut self) -> Result<bool> {
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}

fn status(line: &str) -> Option<u16> {
    let mut words = line.strip_prefix("HTTP/1.")?.split(' ');
    words.nth(1)?.parse().ok()
}

fn nonsense(line: &str) -> Error {
    Error::new(ErrorKind::InvalidData, line)
}
