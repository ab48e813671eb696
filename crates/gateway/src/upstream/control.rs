//! Calls that the gateway makes on its own behalf: health probes and questions to workers.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use reqwest::{Client, Request, Url};
use rustls::pki_types::DnsName;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::address::{LookupError, Resolver, connect};
use super::clients::{ClientMaker, Clients, SecureClients};
use super::error::{UpstreamError, of_tls};
use super::tls::WorkerTls;
use crate::config::{ConnectionSection, Scheme, WorkerUrl};
use crate::via::Via;

/// An answer larger than this is refused, bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// A connection that ends within this time may have been a kept one that died unseen.
const DIED_UNSEEN: Duration = Duration::from_secs(1);

/// The one client of these calls. Its connections live on the control thread; a clone may be
/// used from any lane.
#[derive(Clone, Debug)]
pub(crate) struct ControlClient {
    plain: Clients,
    secure: SecureClients,
    resolver: Resolver,
    connect_timeout: Duration,
    /// The control thread's.
    runtime: Handle,
}

/// Whether a call may be made again when its connection is lost without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Without harm.
    Once,
    /// It may have been carried out.
    Never,
}

/// A call to a worker.
#[derive(Debug)]
pub(crate) struct ControlRequest<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a WorkerUrl,
    /// Path and query.
    pub(crate) path: &'a str,
    /// The worker's key, as `authorization` carries it.
    pub(crate) bearer: Option<HeaderValue>,
    /// JSON, or nothing.
    pub(crate) body: Bytes,
    /// Another header line.
    pub(crate) line: Option<(&'static HeaderName, HeaderValue)>,
    pub(crate) repeat: Repeat,
}

/// A whole answer to the gateway's own credentials. A client may see only what
/// `api::disclosure` lists.
#[derive(Debug)]
pub(crate) struct PrivateAnswer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl ControlClient {
    /// A client whose connections the tasks of `runtime` serve.
    pub(crate) fn new(
        options: &ConnectionSection,
        resolver: Resolver,
        tls: Arc<WorkerTls>,
        runtime: Handle,
        via: &Via,
    ) -> io::Result<Self> {
        let maker = ClientMaker::new(options, via);
        Ok(Self {
            plain: maker.plain(&resolver)?,
            secure: SecureClients::new(maker, resolver.clone(), tls),
            resolver,
            connect_timeout: options.connect_timeout,
            runtime,
        })
    }

    /// Makes a call and reads the whole answer. Dropping the future ends the call.
    pub(crate) async fn send(
        &self,
        request: ControlRequest<'_>,
    ) -> Result<PrivateAnswer, UpstreamError> {
        let (host, port) = (self.resolver.host(request.url.host()), request.url.port());
        let (limit, repeat) = (self.connect_timeout, request.repeat);
        let clients = match request.url.scheme() {
            Scheme::Http => self.plain.clone(),
            Scheme::Https => self.secure.of(request.url).await?,
        };
        let client = match repeat {
            Repeat::Once => clients.pooled,
            Repeat::Never => clients.unpooled,
        };
        let name = self.secure.name(request.url);
        let send = send_twice_at_most(client, request.build(name)?, repeat);
        let call = async move {
            if host.has_choice() {
                // reqwest waits long for each address: the first must be one that answers.
                let _ = connect(&host, port, limit).await;
            }
            let answer = send.await;
            // Until here, so that the host's addresses stay known.
            drop(host);
            answer
        };
        let call = AbortOnDropHandle::new(self.runtime.spawn(call));
        // A call is cancelled only when the control thread ends.
        call.await.unwrap_or(Err(UpstreamError::NoResponse))
    }
}

impl ControlClient {
    /// Runs a task on the control thread; it goes on when what is returned is dropped.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(task)
    }
}

impl ControlRequest<'_> {
    /// The request; a `name` that the worker's certificate must have stands in the URL in place
    /// of the host.
    fn build(self, name: Option<&DnsName<'_>>) -> Result<Request, UpstreamError> {
        let (authority, prefix) = (self.url.authority(), self.url.prefix());
        let (scheme, path, port) = (self.url.scheme().as_str(), self.path, self.url.port());
        let place = match name {
            None => authority.to_string(),
            Some(name) => format!("{}:{port}", name.as_ref()),
        };
        let url = Url::parse(&format!("{scheme}://{place}{prefix}{path}"));
        let url = url.map_err(|_| UpstreamError::Malformed("the path makes no URL"))?;
        let mut request = Request::new(self.method, url);
        let headers = request.headers_mut();
        // The worker's own address, with its port also where that is the default.
        if let Ok(host) = HeaderValue::try_from(authority.as_str()) {
            headers.insert(header::HOST, host);
        }
        if let Some(bearer) = self.bearer {
            headers.insert(header::AUTHORIZATION, bearer);
        }
        if let Some((name, value)) = self.line {
            headers.insert(name, value);
        }
        if !self.body.is_empty() {
            let json = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, json);
        } else if *request.method() == Method::POST {
            request
                .headers_mut()
                .insert(header::CONTENT_LENGTH, 0.into());
        }
        *request.body_mut() = Some(self.body.into());
        Ok(request)
    }
}

/// A kept connection may have died unseen: when it ends at once, before the first byte of an
/// answer, the request goes out once more.
async fn send_twice_at_most(
    client: Client,
    request: Request,
    repeat: Repeat,
) -> Result<PrivateAnswer, UpstreamError> {
    let again = request.try_clone().filter(|_| repeat == Repeat::Once);
    let sent = Instant::now();
    match (execute(&client, request).await, again) {
        (Err(UpstreamError::NoResponse), Some(again)) if sent.elapsed() < DIED_UNSEEN => {
            execute(&client, again).await
        }
        (outcome, _) => outcome,
    }
}

async fn execute(client: &Client, request: Request) -> Result<PrivateAnswer, UpstreamError> {
    let mut response = client
        .execute(request)
        .await
        .map_err(|error| no_answer(&error))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamError::Malformed(
            "switched protocols without being asked",
        ));
    }
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(|error| truncated(&error))? {
        if body.len() + piece.len() > MAX_ANSWER {
            return Err(UpstreamError::Truncated("length limit exceeded".to_owned()));
        }
        body.extend_from_slice(&piece);
    }
    Ok(PrivateAnswer {
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
        body: body.freeze(),
    })
}

/// The error of a call without an answer.
fn no_answer(error: &reqwest::Error) -> UpstreamError {
    let lookup = causes(error).find_map(|cause| cause.downcast_ref::<LookupError>());
    if let Some(lookup) = lookup {
        return UpstreamError::NameLookup(lookup.to_string());
    }
    let io = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>());
    if let Some(refused) = io.and_then(of_tls) {
        return UpstreamError::Tls(io::Error::other(refused.clone()));
    }
    if error.is_connect() {
        return UpstreamError::connect(connect_error(error));
    }
    let hyper = causes(error).find_map(|cause| cause.downcast_ref::<hyper::Error>());
    match hyper {
        Some(error) if error.is_parse_too_large() => {
            UpstreamError::Malformed("response head is too large")
        }
        Some(error) if error.is_parse() => UpstreamError::Malformed("response is not HTTP/1.1"),
        _ => UpstreamError::NoResponse,
    }
}

/// What the system said, if the system said something.
fn connect_error(error: &reqwest::Error) -> io::Error {
    if error.is_timeout() {
        return io::ErrorKind::TimedOut.into();
    }
    let system = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>());
    match system {
        Some(error) => match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        },
        None => io::Error::other(root(error).to_string()),
    }
}

fn truncated(error: &reqwest::Error) -> UpstreamError {
    let ended = |cause: &(dyn StdError + 'static)| {
        let io = cause.downcast_ref::<io::Error>();
        let hyper = cause.downcast_ref::<hyper::Error>();
        io.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
            || hyper.is_some_and(hyper::Error::is_incomplete_message)
    };
    UpstreamError::Truncated(if causes(error).any(ended) {
        "connection closed before the end of the body".to_owned()
    } else {
        root(error).to_string()
    })
}

fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let first: &'a (dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |error: &&'a (dyn StdError + 'static)| {
        (*error).source()
    })
}

fn root(error: &reqwest::Error) -> &(dyn StdError + 'static) {
    causes(error).last().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::Options;

    async fn worker() -> (TcpListener, WorkerUrl) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = WorkerUrl::parse(&listener.local_addr().unwrap().to_string());
        (listener, url.unwrap())
    }

    fn client() -> ControlClient {
        ControlClient::new(
            &ConnectionSection::from(&Options::default()),
            Resolver::default(),
            Arc::default(),
            Handle::current(),
            &Via::new(),
        )
        .unwrap()
    }

    fn post(url: &WorkerUrl) -> ControlRequest<'_> {
        ControlRequest {
            method: Method::POST,
            url,
            path: "/flush_cache?now=1",
            bearer: Some(HeaderValue::from_static("Bearer k")),
            body: Bytes::new(),
            line: None,
            repeat: Repeat::Once,
        }
    }

    async fn read_head(stream: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    #[tokio::test]
    async fn request_carries_the_workers_key_and_nothing_unasked() {
        let (listener, url) = worker().await;
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            let answer = b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 2\r\n\r\nhi";
            stream.write_all(answer).await.unwrap();
            (stream, head)
        };
        let client = client();
        let (answer, (_stream, head)) = tokio::join!(client.send(post(&url)), serve);
        let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
        assert!(lines.iter().any(|line| line.starts_with("via: 1.1 smg-")));
        lines.retain(|line| !line.starts_with("via:"));
        lines.sort_unstable();
        let host = format!("host: {}", url.authority());
        let expected = [
            "POST /flush_cache?now=1 HTTP/1.1",
            "accept: */*",
            "authorization: Bearer k",
            "content-length: 0",
            &host,
        ];
        assert_eq!(lines, expected);
        let answer = answer.unwrap();
        assert_eq!(
            (answer.status, &answer.body[..]),
            (StatusCode::FOUND, &b"hi"[..])
        );
    }

    #[tokio::test]
    async fn answer_over_the_limit_is_an_error() {
        let (listener, url) = worker().await;
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b' '; 16_384]).await.is_ok() {}
        };
        let client = client();
        let (answer, ()) = tokio::join!(client.send(post(&url)), serve);
        assert!(matches!(answer, Err(UpstreamError::Truncated(why)) if why.contains("limit")));
    }

    #[tokio::test]
    async fn dropped_call_closes_its_connection() {
        let (listener, url) = worker().await;
        let client = client();
        let mut stream = tokio::select! {
            _ = client.send(post(&url)) => unreachable!("the worker does not answer"),
            stream = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_head(&mut stream).await;
                stream
            } => stream,
        };
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn call_lost_with_its_connection_is_made_once_more() {
        let (listener, url) = worker().await;
        let serve = async {
            let mut asked = 0;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_head(&mut stream).await;
                asked += 1;
                if asked == 2 {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                    return stream;
                }
            }
        };
        let client = client();
        let (answer, _stream) = tokio::join!(client.send(post(&url)), serve);
        assert!(answer.unwrap().status.is_success());
    }
}
