//! TLS towards clients: the certificate in force, and handshakes.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustls::crypto::ring::Ticketer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::client_stream::ClientStream;
use super::connection_state::ConnectionState;
use crate::config::ServerTlsSection;
use crate::tls::{Contents, Look, TlsError, Watched, pair, provider, roots};

/// Longest time for a handshake, from the connection's start.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same once a drain has begun.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(500);
/// Handshakes at a time per lane. Another one ends the one that has taken longest.
const MAX_HANDSHAKES: usize = 512;
/// The first byte of every TLS connection: a record of the type handshake (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// The answer to a client that speaks HTTP without TLS.
const NO_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 36\r\n\
    connection: close\r\n\r\nthis port speaks https and not http\n";

/// What is shown to clients, by the files as they are now.
#[derive(Debug)]
pub(crate) struct ServerTls(Watched<ServerConfig>);

impl ServerTls {
    /// Reads the files, so it blocks.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub(crate) fn new(section: ServerTlsSection) -> Result<Self, TlsError> {
        let mut files = section.pair.files().to_vec();
        files.extend(section.client_cas.iter().cloned());
        let make = move |contents: &Contents| config(&section, contents);
        Watched::new(files, make).map(Self)
    }

    /// Makes it anew when its files have changed. Blocks.
    pub(crate) fn look(&self) -> Look {
        self.0.look()
    }
}

fn config(section: &ServerTlsSection, contents: &Contents) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let (chain, key) = pair(&section.pair, contents, &provider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = if section.client_cas.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut trusted = RootCertStore::empty();
        roots(&section.client_cas, contents, &mut trusted)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), provider);
        let verifier = verifier.build();
        let verifier = verifier.map_err(|error| TlsError::Other(error.to_string()))?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets hold for one configuration, so no session outlives a change of trust.
    config.ticketer = Ticketer::new()?;
    Ok(config)
}

/// The handshakes of one lane that have not ended yet, longest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Handshakes(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    /// In ascending order of their numbers.
    list: VecDeque<(u64, Weak<ConnectionState>)>,
}

/// Counts a handshake as pending until dropped.
struct PendingHandshake {
    all: Handshakes,
    number: u64,
}

impl Handshakes {
    /// A handshake begins; the one that has taken longest is ended when there are too many.
    fn begin(&self, state: &Arc<ConnectionState>) -> PendingHandshake {
        let mut pending = self.lock();
        let number = pending.next;
        pending.next += 1;
        pending.list.push_back((number, Arc::downgrade(state)));
        let oldest = (pending.list.len() > MAX_HANDSHAKES)
            .then(|| pending.list.pop_front())
            .flatten();
        drop(pending);
        if let Some(oldest) = oldest.and_then(|(_, state)| state.upgrade()) {
            oldest.doom();
        }
        PendingHandshake {
            all: self.clone(),
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PendingHandshake {
    fn drop(&mut self) {
        let mut pending = self.all.lock();
        let place = pending.list.binary_search_by_key(&self.number, |it| it.0);
        if let Ok(place) = place {
            pending.list.remove(place);
        }
    }
}

/// How the connections of one lane become TLS.
#[derive(Clone, Debug)]
pub(super) struct LaneTls {
    pub(super) tls: Arc<ServerTls>,
    pub(super) handshakes: Handshakes,
}

impl LaneTls {
    /// The handshake of a connection; `None` when it failed, took too long or was given up.
    pub(super) async fn handshake(
        self,
        stream: TcpStream,
        state: &Arc<ConnectionState>,
        draining: &CancellationToken,
    ) -> Option<TlsStream<ClientStream>> {
        let pending = self.handshakes.begin(state);
        let accepting = accept(stream, Arc::clone(state), self.tls.0.get());
        let given_up = async {
            draining.cancelled().await;
            tokio::time::sleep(HANDSHAKE_GRACE).await;
        };
        let mut accepting = pin!(timeout(HANDSHAKE_TIMEOUT, accepting));
        let accepted = tokio::select! {
            biased;
            () = state.doomed() => None,
            accepted = &mut accepting => Some(accepted),
            () = given_up => None,
        };
        drop(pending);
        match accepted {
            Some(Ok(Ok(stream))) => Some(stream),
            Some(Ok(Err(error))) => {
                debug!(%error, "TLS handshake failed");
                None
            }
            Some(Err(_)) => {
                debug!("TLS handshake took too long");
                None
            }
            None => None,
        }
    }
}

async fn accept(
    mut stream: TcpStream,
    state: Arc<ConnectionState>,
    config: Arc<ServerConfig>,
) -> io::Result<TlsStream<ClientStream>> {
    let mut first = [0];
    let seen = stream.peek(&mut first).await?;
    if seen > 0 && first != [HANDSHAKE_RECORD] {
        stream.write_all(NO_TLS).await?;
        stream.shutdown().await?;
        // What the client has sent must be read, or the close becomes a reset that costs it
        // the answer.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        return Err(io::Error::other("the client speaks HTTP without TLS"));
    }
    let stream = ClientStream::new(stream, state);
    TlsAcceptor::from(config).accept(stream).await
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::generate_simple_self_signed;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;
    use crate::config::Options;

    fn new_state() -> Arc<ConnectionState> {
        Arc::new(ConnectionState::new(Arc::default()))
    }

    fn lane_tls() -> LaneTls {
        let made = generate_simple_self_signed(["gw".to_owned()]).unwrap();
        let path = |end: &str| {
            let name = format!("smg-server-{}.{end}", uuid::Uuid::new_v4());
            let path = std::env::temp_dir().join(name);
            path.to_str().unwrap().to_owned()
        };
        let (cert, key) = (path("crt"), path("key"));
        fs::write(&cert, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let options = Options {
            server_cert_path: Some(cert.clone()),
            server_key_path: Some(key.clone()),
            ..Options::default()
        };
        let tls = ServerTls::new(ServerTlsSection::new(&options).unwrap()).unwrap();
        fs::remove_file(cert).unwrap();
        fs::remove_file(key).unwrap();
        LaneTls {
            tls: Arc::new(tls),
            handshakes: Handshakes::default(),
        }
    }

    /// Both ends of a connection.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test(start_paused = true)]
    async fn handshake_that_stays_silent_is_given_up_and_sooner_in_a_drain() {
        for (draining, limit) in [(false, HANDSHAKE_TIMEOUT), (true, HANDSHAKE_GRACE)] {
            let (_client, stream) = connected().await;
            let (begun, token) = (Instant::now(), CancellationToken::new());
            if draining {
                token.cancel();
            }
            let tls = lane_tls();
            let handshakes = tls.handshakes.clone();
            let ended = tls.handshake(stream, &new_state(), &token).await;
            assert!(ended.is_none());
            let (least, most) = (limit, limit + Duration::from_millis(100));
            assert!(
                (least..most).contains(&begun.elapsed()),
                "{:?}",
                begun.elapsed()
            );
            assert!(handshakes.lock().list.is_empty());
        }
    }

    #[test]
    fn one_handshake_too_many_ends_the_one_that_has_taken_longest() {
        let handshakes = Handshakes::default();
        let states: Vec<_> = (0..=MAX_HANDSHAKES).map(|_| new_state()).collect();
        let done = handshakes.begin(&states[0]);
        let mut pending: Vec<_> = (1..MAX_HANDSHAKES)
            .map(|at| handshakes.begin(&states[at]))
            .collect();
        drop(done);
        pending.push(handshakes.begin(&states[MAX_HANDSHAKES]));
        assert!(states.iter().all(|state| !state.is_ended()));
        let one_more = new_state();
        pending.push(handshakes.begin(&one_more));
        let ended = (0..states.len()).filter(|&at| states[at].is_ended());
        assert_eq!(ended.collect::<Vec<_>>(), [1]);
        assert!(!one_more.is_ended());
        drop(pending);
        assert!(handshakes.lock().list.is_empty());
    }
}
