//! A worker that does exactly what a test says, byte for byte.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// What a worker does with a request, step by step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits until the test calls [`Worker::go_on`], or the gateway closes.
    Wait,
    /// Closes the connection.
    Close,
    /// Closes the connection so that the gateway sees a reset.
    Reset,
    /// Sends no more, but leaves the connection open.
    HalfClose,
    /// Does nothing for a while.
    Pause(Duration),
    /// Sets a flag.
    Note(Arc<AtomicBool>),
    /// Keeps the connection open and silent until the gateway closes it.
    Hang,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Request line and header lines, up to the empty line.
    pub head: String,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// Counts the connections of this worker.
    pub connection: usize,
}

impl Received {
    /// The path, with its query.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// Whether it only asks if the engine obeys `x-override-*` headers.
    pub fn asks_for_overrides(&self) -> bool {
        self.body == b"{}" && self.all("x-override-bootstrap-room") == ["?"]
    }

    /// The values of all header lines of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let start = format!("{name}: ");
        self.head
            .split("\r\n")
            .filter_map(|line| line.strip_prefix(&start))
            .collect()
    }
}

/// What an engine that obeys `x-override-*` headers says to a room that is no number.
const INVALID_ROOM: &str = r#"{"error":{"message":"invalid x-override-bootstrap-room header '?': invalid literal for int() with base 10: '?'"}}"#;
/// What another one says to the same request.
const NO_PROMPT: &str =
    r#"{"error":{"message":"Either text, input_ids or input_embeds should be provided."}}"#;

type Steps = dyn Fn(&Received) -> Vec<Step> + Send + Sync;

struct Script(Box<Steps>);

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

/// A scripted worker; gone when dropped.
#[derive(Debug)]
pub struct Worker {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    script: Script,
    received: Mutex<Vec<Received>>,
    go_on: Notify,
    connections: AtomicUsize,
    disconnects: AtomicUsize,
    sent: AtomicUsize,
}

/// A JSON reply.
pub fn json(status: u16, body: &str) -> Vec<Step> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    vec![Step::Send((head + body).into_bytes())]
}

/// The reply `{"ok":true}`.
pub fn ok() -> Vec<Step> {
    json(200, r#"{"ok":true}"#)
}

impl Worker {
    /// A worker that answers every POST by this script, and questions about itself truthfully.
    pub async fn scripted(script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::obeying(Arc::default(), script).await
    }

    /// The same, whose engine obeys `x-override-*` headers while the flag is set.
    pub async fn obeying(
        obeys: Arc<AtomicBool>,
        script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        Self::listening(0, move |request| {
            if request.asks_for_overrides() {
                let obeys = obeys.load(Ordering::SeqCst);
                json(400, if obeys { INVALID_ROOM } else { NO_PROMPT })
            } else if request.head.starts_with("GET /health ") {
                json(200, "")
            } else if request.head.starts_with("GET /server_info ") {
                json(200, r#"{"served_model_name":"test-model","tp_size":1}"#)
            } else if request.head.starts_with("GET /model_info ") {
                json(200, "{}")
            } else if request.head.starts_with("GET /v1/models ")
                || request.head.starts_with("GET /ready ")
            {
                json(404, r#"{"detail":"Not Found"}"#)
            } else {
                script(request)
            }
        })
        .await
    }

    /// A worker that answers every POST with these steps.
    pub async fn doing(steps: Vec<Step>) -> Self {
        Self::scripted(move |_| steps.clone()).await
    }

    /// A worker on this port whose script answers everything.
    pub async fn listening(
        port: u16,
        script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => break listener,
                // The one before on this port may not be quite gone.
                Err(_) if port != 0 => sleep(Duration::from_millis(1)).await,
                Err(error) => panic!("{error}"),
            }
        };
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            script: Script(Box::new(script)),
            received: Mutex::default(),
            go_on: Notify::new(),
            connections: AtomicUsize::new(0),
            disconnects: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // Dropped with the listener: a worker that is gone has no connections.
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let connection = serving.connections.fetch_add(1, Ordering::SeqCst);
                open.spawn(Arc::clone(&serving).serve(stream, connection));
                while open.try_join_next().is_some() {}
            }
        });
        Self { port, state, task }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it and everything it was doing.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The POSTs and other inference requests so far.
    pub fn received(&self) -> Vec<Received> {
        let questions = [
            "/health",
            "/server_info",
            "/get_server_info",
            "/model_info",
            "/get_model_info",
            "/v1/models",
            "/ready",
        ];
        let mut received = self.state.received.lock().unwrap().clone();
        received.retain(|request| {
            !questions.contains(&request.path()) && !request.asks_for_overrides()
        });
        received
    }

    /// Forgets the requests so far, for tests with many.
    pub fn forget_received(&self) {
        *self.state.received.lock().unwrap() = Vec::new();
    }

    /// Times the gateway closed a connection amid a request.
    pub fn disconnects(&self) -> usize {
        self.state.disconnects.load(Ordering::SeqCst)
    }

    /// Bytes of replies that went into sockets so far.
    pub fn sent(&self) -> usize {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// Lets every waiting request go on.
    pub fn go_on(&self) {
        self.state.go_on.notify_waiters();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    async fn serve(self: Arc<Self>, mut stream: TcpStream, connection: usize) {
        let mut buffer = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut buffer, connection).await {
            self.received.lock().unwrap().push(request.clone());
            for step in (self.script.0)(&request) {
                if !self.take(step, &mut stream).await {
                    return;
                }
            }
        }
    }

    async fn take(&self, step: Step, stream: &mut TcpStream) -> bool {
        let mut byte = [0];
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    self.disconnects.fetch_add(1, Ordering::SeqCst);
                    return false;
                }
                self.sent.fetch_add(bytes.len(), Ordering::SeqCst);
                true
            }
            Step::Close => false,
            Step::Reset => {
                let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
                false
            }
            Step::HalfClose => {
                let _ = stream.shutdown().await;
                true
            }
            Step::Note(flag) => {
                flag.store(true, Ordering::SeqCst);
                true
            }
            Step::Pause(pause) => {
                sleep(pause).await;
                true
            }
            Step::Wait => tokio::select! {
                () = self.go_on.notified() => true,
                _ = stream.read(&mut byte) => {
                    self.disconnects.fetch_add(1, Ordering::SeqCst);
                    false
                }
            },
            Step::Hang => {
                let _ = stream.read(&mut byte).await;
                self.disconnects.fetch_add(1, Ordering::SeqCst);
                false
            }
        }
    }
}

async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    connection: usize,
) -> Option<Received> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let length = head
        .split("\r\n")
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    while buffer.len() < end + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[end..end + length].to_vec();
    buffer.drain(..end + length);
    Some(Received {
        head,
        body,
        connection,
    })
}
