//! A client that exposes raw bytes, and waits with a deadline.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use sim::{SimOptions, SimStats, SimWorker};

/// Deadline of every wait; only a failing test reaches it.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn start(options: SimOptions) -> SimWorker {
    SimWorker::start(options).expect("the worker starts")
}

pub(crate) fn started() -> SimWorker {
    start(SimOptions {
        record_requests: 16,
        ..SimOptions::default()
    })
}

/// Waits until the counts meet a condition.
pub(crate) fn until(worker: &SimWorker, condition: impl Fn(&SimStats) -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    assert!(
        runtime.block_on(worker.until(LIMIT, condition)),
        "not met: {:?}",
        worker.stats()
    );
}

/// A response as far as it arrived.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body is complete.
    pub(crate) whole: bool,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let same = |pair: &&(String, String)| pair.0 == name;
        self.headers
            .iter()
            .filter(same)
            .map(|pair| pair.1.as_str())
            .collect()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// The `data:` lines of an event stream.
    pub(crate) fn events(&self) -> Vec<&str> {
        let blocks = self.text().split("\n\n").filter(|block| !block.is_empty());
        blocks
            .map(|block| block.rsplit_once("data: ").expect("a data line").1)
            .collect()
    }
}

/// One connection.
pub(crate) struct Client {
    socket: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub(crate) fn new(worker: &SimWorker) -> Self {
        let socket = TcpStream::connect(worker.addr()).expect("it listens");
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            socket,
            unread: Vec::new(),
        }
    }

    /// Sends a request with `headers` as raw lines.
    pub(crate) fn send(&mut self, request: &str, headers: &str, body: &str) {
        let length = body.len();
        let head =
            format!("{request} HTTP/1.1\r\nhost: sim\r\n{headers}content-length: {length}\r\n\r\n");
        self.socket.write_all((head + body).as_bytes()).unwrap();
    }

    pub(crate) fn post(&mut self, path: &str, body: &str) {
        self.send(
            &format!("POST {path}"),
            "content-type: application/json\r\n",
            body,
        );
    }

    /// Reads until `len` bytes are unread; false if the connection ends first.
    fn fill(&mut self, len: usize) -> io::Result<bool> {
        let mut piece = [0; 8192];
        while self.unread.len() < len {
            match self.socket.read(&mut piece)? {
                0 => return Ok(false),
                count => self.unread.extend_from_slice(&piece[..count]),
            }
        }
        Ok(true)
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..end + 2).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if !self.fill(self.unread.len() + 1)? {
                return Ok(None);
            }
        }
    }

    /// Reads status and headers; `None` if the connection ends first.
    pub(crate) fn head(&mut self) -> io::Result<Option<Reply>> {
        let Some(first) = self.line()? else {
            return Ok(None);
        };
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3));
        let status = status.and_then(|code| code.parse().ok());
        let Some(status) = status else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, first));
        };
        let mut reply = Reply {
            status,
            ..Reply::default()
        };
        loop {
            match self.line()? {
                None => return Ok(None),
                Some(line) if line.is_empty() => return Ok(Some(reply)),
                Some(line) => {
                    let (name, value) = line.split_once(": ").unwrap();
                    reply.headers.push((name.to_lowercase(), value.to_owned()));
                }
            }
        }
    }

    /// Reads a body up to its end or the end of the connection.
    pub(crate) fn body(&mut self, reply: &mut Reply) -> io::Result<()> {
        if let Some(length) = reply.header("content-length").first() {
            let length = length.parse().expect("a number");
            reply.whole = self.fill(length)?;
            reply
                .body
                .extend(self.unread.drain(..length.min(self.unread.len())));
            return Ok(());
        }
        while let Some(chunk) = self.chunk()? {
            reply.whole = chunk.is_empty();
            reply.body.extend_from_slice(&chunk);
            if reply.whole {
                break;
            }
        }
        Ok(())
    }

    /// The next chunk of a chunked body, empty for the last; `None` if the connection ends.
    pub(crate) fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(line) = self.line()? else {
            return Ok(None);
        };
        let length = usize::from_str_radix(&line, 16).expect("a chunk's length");
        if !self.fill(length + 2)? {
            return Ok(None);
        }
        let chunk = self.unread.drain(..length + 2).take(length).collect();
        Ok(Some(chunk))
    }

    pub(crate) fn reply(&mut self) -> Reply {
        let mut reply = self.head().expect("HTTP").expect("a response");
        self.body(&mut reply).expect("a body");
        reply
    }

    /// Whether the peer has closed or reset the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.fill(self.unread.len() + 1), Ok(false) | Err(_))
    }
}

/// One request on its own connection.
pub(crate) fn post(worker: &SimWorker, path: &str, body: &str) -> Reply {
    let mut client = Client::new(worker);
    client.post(path, body);
    client.reply()
}

pub(crate) fn get(worker: &SimWorker, path: &str) -> Reply {
    let mut client = Client::new(worker);
    client.send(&format!("GET {path}"), "", "");
    client.reply()
}

/// A chat request of one message.
pub(crate) fn chat(content: &str, rest: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]{rest}}}"#)
}
