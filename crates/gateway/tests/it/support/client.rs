//! A client that sees every byte.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{DEADLINE, Running};

/// A reply, header lines as they came.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as its framing promised.
    pub(crate) whole: bool,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(known, _)| known == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or_default()
    }

    /// `error.code` of the envelope, checked against its header.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        let error = &body["error"];
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{body}"
        );
        assert!(error.get("param").is_some(), "{body}");
        let code = error["code"].as_str().unwrap().to_owned();
        assert_eq!(self.header("x-smg-error-code"), code);
        code
    }
}

/// One connection to the gateway.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A POST of JSON with further header lines, each with its line end.
pub(crate) fn posting(path: &str, lines: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: g\r\n{lines}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The smallest inference request, with further header lines.
pub(crate) fn generate(lines: &str) -> Vec<u8> {
    posting("/generate", lines, "{}")
}

/// The smallest request for a stream.
pub(crate) fn chat_stream() -> Vec<u8> {
    posting("/v1/chat/completions", "", r#"{"stream":true}"#)
}

/// POSTs JSON on a connection of its own.
pub(crate) async fn post(gateway: &Running, path: &str, body: &str) -> Reply {
    raw(gateway, &posting(path, "", body)).await
}

/// GETs on a connection of its own.
pub(crate) async fn get(gateway: &Running, path: &str) -> Reply {
    raw(
        gateway,
        format!("GET {path} HTTP/1.1\r\nhost: g\r\n\r\n").as_bytes(),
    )
    .await
}

/// Sends these bytes on a connection of its own, and reads one reply.
pub(crate) async fn raw(gateway: &Running, bytes: &[u8]) -> Reply {
    let mut client = Client::connect(gateway.gateway.addr()).await;
    client.send(bytes).await;
    client.reply().await
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(addr).await.unwrap(),
            buffer: Vec::new(),
        }
    }

    pub(crate) async fn to(gateway: &Running) -> Self {
        Self::connect(gateway.gateway.addr()).await
    }

    /// A client that has sent [`generate`] with these header lines.
    pub(crate) async fn asking(gateway: &Running, lines: &str) -> Self {
        let mut client = Self::to(gateway).await;
        client.send(&generate(lines)).await;
        client
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // The gateway may refuse and stop reading before all is sent.
        let _ = self.stream.write_all(bytes).await;
    }

    /// Reads one whole reply; `None` when the connection ends before its head.
    pub(crate) async fn try_reply(&mut self) -> Option<Reply> {
        while !self.buffer.windows(4).any(|four| four == b"\r\n\r\n") {
            if timeout(DEADLINE, self.fill())
                .await
                .expect("no reply in time")
                == 0
            {
                return None;
            }
        }
        Some(self.reply().await)
    }

    /// Reads one whole reply.
    pub(crate) async fn reply(&mut self) -> Reply {
        timeout(DEADLINE, self.read_reply())
            .await
            .expect("no reply in time")
    }

    /// Reads until `marker` has come; gives everything read so far.
    pub(crate) async fn read_until(&mut self, marker: &str) -> String {
        let reading = async {
            while !String::from_utf8_lossy(&self.buffer).contains(marker) {
                assert!(self.fill().await > 0, "closed before {marker:?}");
            }
        };
        timeout(DEADLINE, reading)
            .await
            .unwrap_or_else(|_| panic!("no {marker:?} in time"));
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Whether the gateway closed the connection.
    pub(crate) async fn closed(&mut self) -> bool {
        timeout(DEADLINE, self.fill()).await.expect("still open") == 0
    }

    async fn fill(&mut self) -> usize {
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0)
    }

    async fn read_reply(&mut self) -> Reply {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            assert!(
                self.fill().await > 0,
                "closed before a reply: {:?}",
                self.buffer
            );
        };
        let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let header = |line: &str| {
            line.split_once(": ")
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
        };
        let headers = lines.filter_map(header).collect();
        let mut reply = Reply {
            status,
            headers,
            body: Vec::new(),
            whole: true,
        };
        if reply.header("transfer-encoding") == "chunked" {
            self.read_chunks(&mut reply).await;
        } else if let Ok(length) = reply.header("content-length").parse() {
            reply.whole = self.need(length).await;
            let available = length.min(self.buffer.len());
            reply.body = self.buffer.drain(..available).collect();
        }
        reply
    }

    async fn read_chunks(&mut self, reply: &mut Reply) {
        loop {
            let Some(line) = self.line().await else { break };
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            if !self.need(size + 2).await {
                break;
            }
            reply.body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
            if size == 0 {
                return;
            }
        }
        reply.whole = false;
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.iter().position(|&byte| byte == b'\n') {
                return String::from_utf8(self.buffer.drain(..=at).collect()).ok();
            }
            if self.fill().await == 0 {
                return None;
            }
        }
    }

    async fn need(&mut self, length: usize) -> bool {
        while self.buffer.len() < length {
            if self.fill().await == 0 {
                return false;
            }
        }
        true
    }
}
