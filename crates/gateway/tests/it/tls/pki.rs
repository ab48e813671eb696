//! Certificates of a test's own, in files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gateway::Options;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a server or client of these names.
    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    /// What a server of this pair serves with; `clients` is the authority that clients must be of.
    pub(crate) fn server(pair: &Pair, clients: Option<&Self>) -> ServerConfig {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    clients.roots(),
                    Arc::new(ring::default_provider()),
                );
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (chain, key) = pair.der();
        builder.with_single_cert(chain, key).unwrap()
    }

    /// What a client that trusts this authority connects with.
    pub(crate) fn client(&self, pair: Option<&Pair>) -> ClientConfig {
        self.client_of(&[&version::TLS13, &version::TLS12], pair)
    }

    /// The same, with these versions of TLS only.
    pub(crate) fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        pair: Option<&Pair>,
    ) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(self.roots());
        match pair.map(Pair::der) {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        }
    }
}

impl Pair {
    fn der(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.cert.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        (chain.map(Result::unwrap).collect(), key)
    }

    /// Its certificate as it is sent.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.der().0.remove(0)
    }
}

/// A mounted Kubernetes secret: files are links through `..data`, which is swapped as a whole.
pub(crate) struct Secret {
    folder: PathBuf,
    versions: usize,
}

impl Secret {
    /// A secret of these files.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("smg-tls-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&folder).unwrap();
        let mut secret = Self {
            folder,
            versions: 0,
        };
        secret.swap(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), secret.folder.join(name)).unwrap();
        }
        secret
    }

    /// A secret that holds a pair as `tls.crt` and `tls.key`, and an authority as `ca.crt`.
    pub(crate) fn of(pair: &Pair, authority: &Authority) -> Self {
        let ca = authority.pem();
        Self::new(&[
            ("tls.crt", &pair.cert),
            ("tls.key", &pair.key),
            ("ca.crt", &ca),
        ])
    }

    /// Gives the files other contents, as the kubelet does.
    pub(crate) fn swap(&mut self, files: &[(&str, &str)]) {
        self.versions += 1;
        let version = format!("..v{}", self.versions);
        fs::create_dir(self.folder.join(&version)).unwrap();
        for (name, text) in files {
            fs::write(self.folder.join(&version).join(name), text).unwrap();
        }
        let (new, data) = (self.folder.join("..data_tmp"), self.folder.join("..data"));
        symlink(version, &new).unwrap();
        fs::rename(new, data).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// The options with which the gateway serves by these files.
    pub(crate) fn serving(&self, options: Options) -> Options {
        Options {
            server_cert_path: Some(self.path("tls.crt")),
            server_key_path: Some(self.path("tls.key")),
            ..options
        }
    }

    /// The options with which the gateway shows the pair to workers and trusts the authority.
    pub(crate) fn calling(&self, options: Options) -> Options {
        Options {
            client_cert_path: Some(self.path("tls.crt")),
            client_key_path: Some(self.path("tls.key")),
            ca_cert_paths: vec![self.path("ca.crt")],
            ..options
        }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
