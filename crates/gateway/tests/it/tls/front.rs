//! TLS before a scripted worker: what comes in is decrypted and handed on.

use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::support::Worker;

/// How a front ends its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goodbye {
    /// As TLS asks for, by `close_notify`.
    Said,
    /// By closing the socket alone.
    Unsaid,
}

/// What a front has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The name that was asked for in each handshake.
    pub(super) names: Vec<Option<String>>,
    /// The certificate that was shown in each handshake.
    pub(super) certificates: Vec<Option<Vec<u8>>>,
    /// Handshakes that needed no certificate again.
    pub(super) resumed: usize,
    /// Handshakes that failed.
    pub(super) failed: usize,
}

/// A front; gone when dropped.
pub(super) struct Front {
    port: u16,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    seen: Arc<Mutex<Seen>>,
    hang_up: watch::Sender<Option<Goodbye>>,
    task: JoinHandle<()>,
}

impl Front {
    /// A front before a worker.
    pub(super) async fn before(worker: &Worker, config: ServerConfig) -> Self {
        Self::before_port(worker.port(), config).await
    }

    /// A front before another server on this machine.
    pub(super) async fn before_port(to: u16, config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Arc::new(Mutex::new(Arc::new(config)));
        let (hang_up, told) = watch::channel(None);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (current, noted) = (Arc::clone(&config), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let config = Arc::clone(&current.lock().unwrap());
                open.spawn(serve(stream, config, to, Arc::clone(&noted), told.clone()));
            }
        });
        Self {
            port,
            config,
            seen,
            hang_up,
            task,
        }
    }

    /// A front before a worker of its own.
    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Serves new connections in another way.
    pub(super) fn change(&self, config: ServerConfig) {
        *self.config.lock().unwrap() = Arc::new(config);
    }

    /// Ends every connection.
    pub(super) fn hang_up(&self, goodbye: Goodbye) {
        let _ = self.hang_up.send(Some(goodbye));
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    to: u16,
    seen: Arc<Mutex<Seen>>,
    mut told: watch::Receiver<Option<Goodbye>>,
) {
    told.mark_unchanged();
    let Ok(mut stream) = TlsAcceptor::from(config).accept(stream).await else {
        seen.lock().unwrap().failed += 1;
        return;
    };
    {
        let (_, session) = stream.get_ref();
        let mut seen = seen.lock().unwrap();
        seen.names.push(session.server_name().map(str::to_owned));
        let shown = session.peer_certificates().and_then(|chain| chain.first());
        seen.certificates.push(shown.map(|cert| cert.to_vec()));
        let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        seen.resumed += usize::from(resumed);
    }
    let mut worker = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
    tokio::select! {
        _ = copy_bidirectional(&mut stream, &mut worker) => {}
        _ = told.changed() => {
            let goodbye = *told.borrow();
            if goodbye == Some(Goodbye::Said) {
                let _ = stream.shutdown().await;
                let _ = stream.read(&mut [0]).await;
            }
        }
    }
}
