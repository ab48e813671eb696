//! TLS towards workers: what is shown to them and whom the gateway trusts, as the files are now.

use std::io::{self, Write};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::warn;

use super::error::UpstreamError;
use crate::config::{PairFiles, Verification, WorkerTlsSection, WorkerUrl};
use crate::tls::{Contents, Look, TlsError, Watched, pair, provider, roots};

/// Workers whose sessions are remembered, so that another connection needs no whole handshake.
const SESSIONS: usize = 4096;

/// What a connection may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    Http1,
    /// HTTP/2, or HTTP/1.1 where the worker prefers that.
    Http2,
}

/// What connections are made with, by what they may carry.
#[derive(Debug)]
pub(crate) struct Configs {
    pub(super) http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Configs {
    fn of(&self, offer: Offer) -> &Arc<ClientConfig> {
        match offer {
            Offer::Http1 => &self.http1,
            Offer::Http2 => &self.http2,
        }
    }
}

/// TLS towards workers.
#[derive(Debug, Default)]
pub(crate) struct WorkerTls {
    section: Arc<WorkerTlsSection>,
    /// Made when the first `https://` worker is called, unless options name files.
    configs: OnceCell<Watched<Configs>>,
}

impl WorkerTls {
    /// Reads the files that the options name, so it blocks.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub(crate) fn new(section: WorkerTlsSection) -> Result<Arc<Self>, TlsError> {
        if section.verification == Verification::Skipped {
            warn!("certificates of https:// workers are not checked (tls_skip_verify)");
        }
        let section = Arc::new(section);
        let configs = if section.reads_files() {
            OnceCell::new_with(Some(load(&section)?))
        } else {
            OnceCell::new()
        };
        Ok(Arc::new(Self { section, configs }))
    }

    /// What connections are made with from now on.
    ///
    /// # Errors
    /// When the system's certificates cannot be used.
    pub(super) async fn configs(&self) -> Result<Arc<Configs>, UpstreamError> {
        let loaded = self.configs.get_or_try_init(|| async {
            let section = Arc::clone(&self.section);
            let loading = spawn_blocking(move || load(&section)).await;
            loading.map_err(io::Error::other)?.map_err(io::Error::other)
        });
        Ok(loaded.await.map_err(UpstreamError::Tls)?.get())
    }

    /// Whether connections are still made with `configs`.
    pub(super) fn is_current(&self, configs: &Arc<Configs>) -> bool {
        let current = self.configs.get();
        current.is_some_and(|current| Arc::ptr_eq(&current.get(), configs))
    }

    /// The name that the certificate of a worker must have, where that is not the host of its
    /// URL.
    pub(super) fn name<'a>(&'a self, url: &'a WorkerUrl) -> Option<&'a DnsName<'static>> {
        url.tls_name().or(self.section.name.as_ref())
    }

    /// The handshake of a new connection.
    ///
    /// # Errors
    /// When one of the two does not trust the other, or the connection ends.
    pub(super) async fn connect(
        &self,
        url: &WorkerUrl,
        stream: TcpStream,
        offer: Offer,
    ) -> Result<TlsIo, UpstreamError> {
        let configs = self.configs().await?;
        let name = match self.name(url) {
            Some(name) => ServerName::DnsName(name.clone()),
            None => ServerName::try_from(url.host().to_owned())
                .map_err(|error| UpstreamError::Tls(io::Error::other(error)))?,
        };
        let connector = TlsConnector::from(Arc::clone(configs.of(offer)));
        let stream = connector.connect(name, stream).await;
        let stream = stream.map_err(UpstreamError::Tls)?;
        Ok(TlsIo { stream, configs })
    }

    /// Makes it anew when its files have changed. Blocks.
    pub(crate) fn look(&self) -> Look {
        self.configs.get().map_or(Look::Unchanged, Watched::look)
    }
}

/// A connection over TLS, and what it was made with.
#[derive(Debug)]
pub(crate) struct TlsIo {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) configs: Arc<Configs>,
}

impl Drop for TlsIo {
    /// Says that nothing more comes, as far as that is possible at once.
    fn drop(&mut self) {
        let (stream, session) = self.stream.get_mut();
        session.send_close_notify();
        while session.wants_write() {
            if !matches!(session.write_tls(&mut AtOnce(stream)), Ok(written) if written > 0) {
                break;
            }
        }
    }
}

/// Writes without waiting.
struct AtOnce<'a>(&'a TcpStream);

impl Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn load(section: &Arc<WorkerTlsSection>) -> Result<Watched<Configs>, TlsError> {
    let pair = section.pair.iter().flat_map(PairFiles::files);
    let files = pair.chain(section.cas.iter().cloned()).collect();
    let section = Arc::clone(section);
    let make = move |contents: &Contents| client_configs(&section, contents);
    Watched::new(files, make)
}

fn client_configs(section: &WorkerTlsSection, contents: &Contents) -> Result<Configs, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = match section.verification {
        Verification::Full => builder.with_root_certificates(trusted(section, contents)?),
        Verification::Skipped => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny::new(&provider))),
    };
    let mut config = match &section.pair {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = pair(files, contents, &provider)?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Sessions belong to one configuration, so none outlives a change of trust.
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    let mut http2 = config.clone();
    http2.alpn_protocols.insert(0, b"h2".to_vec());
    Ok(Configs {
        http1: Arc::new(config),
        http2: Arc::new(http2),
    })
}

/// A configuration that trusts no worker, for a client that speaks to none over TLS.
pub(super) fn trusts_none() -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(RootCertStore::empty());
    Ok(builder.with_no_client_auth())
}

/// The system's certificates, and those of the options.
fn trusted(section: &WorkerTlsSection, contents: &Contents) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    if let Some(error) = system.errors.first() {
        warn!(%error, "some certificates of the system cannot be read");
    }
    store.add_parsable_certificates(system.certs);
    roots(&section.cas, contents, &mut store)?;
    if store.is_empty() {
        warn!("the system has no trusted certificates: set ca_cert_paths for https:// workers");
    }
    Ok(store)
}

/// Looks at no certificate, only at whether the other end has its key.
#[derive(Debug)]
struct AcceptAny(WebPkiSupportedAlgorithms);

impl AcceptAny {
    fn new(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
