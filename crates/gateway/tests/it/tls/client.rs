//! A client that speaks TLS.

use std::io::Result;
use std::net::SocketAddr;
use std::sync::Arc;

use gateway::{Gateway, Options};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pki::Authority;
use crate::support::{Client, Reply, Running, until};

/// Connects to a server by the name `localhost`.
pub(super) async fn connect(
    server: impl Into<SocketAddr>,
    config: ClientConfig,
) -> Result<TlsStream<TcpStream>> {
    connect_by(server, &Arc::new(config)).await
}

/// The same with a configuration that knows the sessions of earlier connections.
pub(super) async fn connect_by(
    server: impl Into<SocketAddr>,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.into()).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    connector.connect(name, stream).await
}

/// Sends a request on a connection of its own; `None` when there is no reply.
pub(super) async fn ask(
    server: impl Into<SocketAddr>,
    config: ClientConfig,
    request: &[u8],
) -> Option<Reply> {
    let stream = connect(server, config).await.ok()?;
    let mut client = Client::over(stream);
    client.send(request).await;
    client.try_reply().await
}

/// A gateway that serves over TLS, by a certificate of `authority`, once its workers are ready.
pub(super) async fn start_serving(options: Options, authority: &Authority) -> Running {
    let workers = options.worker_urls.len();
    let running = Running {
        gateway: Gateway::start(&options).unwrap(),
    };
    until(|| async {
        let question = b"GET /readiness HTTP/1.1\r\nhost: g\r\n\r\n";
        let reply = ask(&running, authority.client(None), question).await;
        reply.is_some_and(|reply| workers == 0 || reply.json()["healthy_workers"] == workers)
    })
    .await;
    running
}
