//! HTTP/2 towards workers that offer it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use gateway::Options;
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::pki::{Authority, Secret};
use crate::support::{Client, options, post, posting, start_with, until};

/// Bytes of a reply that no socket takes in, though they fit into a stream's window.
const LONG: usize = 12 << 20;
const PIECE: usize = 64 << 10;
/// Frames of one byte.
const TOKENS: usize = 2000;

/// A reply of one-byte frames, after many bytes if need be. It notes when it has been sent, and
/// when it was given up.
struct Tokens {
    long: usize,
    left: usize,
    endless: bool,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    versions: Mutex<Vec<Version>>,
    connections: AtomicUsize,
    sent: AtomicUsize,
    given_up: AtomicUsize,
}

impl Body for Tokens {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.long > 0 {
            self.long -= PIECE;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; PIECE])))));
        }
        if self.left == 0 && self.endless {
            return Poll::Pending;
        }
        if self.left == 0 {
            self.seen.sent.fetch_add(1, Ordering::SeqCst);
            return Poll::Ready(None);
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"t")))))
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.seen
            .given_up
            .fetch_add(usize::from(self.endless), Ordering::SeqCst);
    }
}

/// A worker that speaks HTTP/1.1 and HTTP/2, over TLS if it has a configuration.
struct Worker {
    url: String,
    seen: Arc<Seen>,
    hang_up: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    async fn start(tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let (hang_up, told) = watch::channel(());
        let seen = Arc::new(Seen::default());
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, seen, told) = (tls.clone(), Arc::clone(&noted), told.clone());
                open.spawn(async move {
                    match tls {
                        None => serve(stream, seen, told).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, seen, told).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            url,
            seen,
            hang_up,
            task,
        }
    }

    fn versions(&self) -> Vec<Version> {
        self.seen.versions.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

async fn serve<S>(stream: S, seen: Arc<Seen>, mut told: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    told.mark_unchanged();
    let first = AtomicUsize::new(1);
    let respond = service_fn(|request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        let post = request.method() == http::Method::POST;
        if post {
            let count = first.swap(0, Ordering::SeqCst);
            seen.connections.fetch_add(count, Ordering::SeqCst);
        }
        async move { Ok::<_, Infallible>(answer(request, seen).await) }
    });
    let builder = Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(TokioIo::new(stream), respond);
    tokio::select! {
        _ = serving => {}
        _ = told.changed() => {}
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Seen>,
) -> Response<http_body_util::Either<String, Tokens>> {
    use http_body_util::Either::{Left, Right};
    let path = request.uri().path().to_owned();
    let text = |text: &str| Response::new(Left(text.to_owned()));
    match path.as_str() {
        "/health" => return text(""),
        "/server_info" => return text(r#"{"served_model_name":"m","enable_http2":true}"#),
        "/generate" => {}
        _ => {
            let mut reply = text("");
            *reply.status_mut() = http::StatusCode::NOT_FOUND;
            return reply;
        }
    }
    seen.versions.lock().unwrap().push(request.version());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asks = |word: &[u8]| body.windows(word.len()).any(|part| part == word);
    if asks(b"length") {
        return text(&body.len().to_string());
    }
    let long = if asks(b"long") { LONG } else { 0 };
    Response::new(Right(Tokens {
        long,
        left: TOKENS,
        endless: asks(b"endless"),
        seen,
    }))
}

async fn start(worker: &Worker, trusting: Options) -> crate::support::Running {
    start_with(Options {
        worker_urls: vec![worker.url.clone()],
        upstream_http2: true,
        ..trusting
    })
    .await
}

/// A worker over TLS that offers these protocols, and what trusts it.
async fn secured(protocols: &[&str]) -> (Worker, Secret, Options) {
    let authority = Authority::new();
    let mut config = Authority::server(&authority.issue(&["127.0.0.1"]), None);
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let secret = Secret::new(&[("ca.crt", &authority.pem())]);
    let trusting = Options {
        ca_cert_paths: vec![secret.path("ca.crt")],
        ..options(&[])
    };
    (Worker::start(Some(config)).await, secret, trusting)
}

const LENGTH: &str = r#"{"text":"length"}"#;

#[tokio::test]
async fn protocol_is_the_one_that_a_worker_offers() {
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let (worker, _secret, trusting) = secured(protocols).await;
        let gateway = start(&worker, trusting).await;
        for _ in 0..3 {
            let reply = post(&gateway, "/generate", LENGTH).await;
            assert_eq!(
                (reply.status, reply.text()),
                (200, LENGTH.len().to_string())
            );
        }
        assert_eq!(worker.versions(), [version; 3], "{protocols:?}");
    }
}

#[tokio::test]
async fn worker_without_tls_is_spoken_to_in_http2_once_it_has_announced_it_and_by_option_only() {
    let worker = Worker::start(None).await;
    let gateway = start(&worker, options(&[])).await;
    let big = format!(r#"{{"text":"length {}"}}"#, "x".repeat(3 << 20));
    let reply = post(&gateway, "/generate", &big).await;
    assert_eq!(reply.text(), big.len().to_string());
    let gateway = start_with(Options {
        worker_urls: vec![worker.url.clone()],
        ..options(&[])
    })
    .await;
    assert_eq!(post(&gateway, "/generate", LENGTH).await.status, 200);
    assert_eq!(worker.versions(), [Version::HTTP_2, Version::HTTP_11]);
}

/// A client that takes little into its socket's buffer.
async fn narrow(gateway: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    Client::over(socket.connect(gateway).await.unwrap())
}

#[tokio::test]
async fn two_thousand_tokens_at_an_unread_stream_harm_none_of_64_others() {
    let worker = Worker::start(None).await;
    let gateway = start(&worker, options(&[])).await;
    let mut unread = narrow((&gateway).into()).await;
    unread
        .send(&posting("/generate", "", r#"{"text":"long"}"#))
        .await;
    let mut reply = unread.head().await.unwrap().unwrap();
    until(|| async { worker.seen.sent.load(Ordering::SeqCst) == 1 }).await;
    let others = (0..64).map(|_| post(&gateway, "/generate", r#"{"text":"tokens"}"#));
    for other in futures_util::future::join_all(others).await {
        assert!(
            other.whole && other.body.len() == TOKENS,
            "{}",
            other.body.len()
        );
    }
    unread.body(&mut reply).await.unwrap();
    assert!(reply.whole && reply.body.len() == LONG + TOKENS);
    // A connection or two per lane, none of which ended.
    let lanes = std::thread::available_parallelism().unwrap().get();
    assert!(
        worker.connections() <= 2 * lanes,
        "{}",
        worker.connections()
    );
    assert_eq!(worker.versions(), [Version::HTTP_2; 65]);
}

#[tokio::test]
async fn client_that_leaves_resets_its_stream_at_the_worker() {
    let (worker, _secret, trusting) = secured(&["h2", "http/1.1"]).await;
    let gateway = start(&worker, trusting).await;
    let mut client = Client::to(&gateway).await;
    client
        .send(&posting("/generate", "", r#"{"text":"endless"}"#))
        .await;
    client.read_until("t").await;
    drop(client);
    until(|| async { worker.seen.given_up.load(Ordering::SeqCst) == 1 }).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn connection_that_the_worker_has_ended_costs_no_request() {
    let (worker, _secret, trusting) = secured(&["h2", "http/1.1"]).await;
    let options = Options {
        disable_retries: true,
        ..trusting
    };
    let gateway = start(&worker, options).await;
    for _ in 0..3 {
        assert_eq!(post(&gateway, "/generate", LENGTH).await.status, 200);
        worker.hang_up.send(()).unwrap();
    }
    assert_eq!(post(&gateway, "/generate", LENGTH).await.status, 200);
    assert_eq!(worker.versions(), [Version::HTTP_2; 4]);
}
