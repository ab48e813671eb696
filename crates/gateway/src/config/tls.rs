//! The options of TLS: which files it is made of.

use rustls::pki_types::DnsName;

use super::error::ConfigError;
use super::options::Options;

/// A file in PEM, and the option that names it.
#[derive(Clone, Debug)]
pub(crate) struct PemFile {
    pub(crate) option: &'static str,
    pub(crate) path: String,
}

/// A certificate with the chain above it, and its private key.
#[derive(Clone, Debug)]
pub(crate) struct PairFiles {
    pub(crate) cert: PemFile,
    pub(crate) key: PemFile,
}

/// What the gateway shows to clients.
#[derive(Clone, Debug)]
pub(crate) struct ServerTlsSection {
    pub(crate) pair: PairFiles,
    /// Clients need a certificate of one of these; none means that they need none.
    pub(crate) client_cas: Vec<PemFile>,
}

/// What the gateway shows to `https://` workers, and what it wants to see of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct WorkerTlsSection {
    pub(crate) pair: Option<PairFiles>,
    /// Beside those of the system.
    pub(crate) cas: Vec<PemFile>,
    pub(crate) verification: Verification,
    /// The name in their certificates, where that is not the host of their URL.
    pub(crate) name: Option<DnsName<'static>>,
}

/// Whether a worker's certificate is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verification {
    #[default]
    Full,
    /// Any certificate will do.
    Skipped,
}

impl PemFile {
    fn all(option: &'static str, paths: &[String]) -> Vec<Self> {
        let file = |path: &String| Self {
            option,
            path: path.clone(),
        };
        paths.iter().map(file).collect()
    }
}

impl PairFiles {
    /// `None` unless both are given.
    fn new(cert: Given<'_>, key: Given<'_>) -> Option<Self> {
        let (cert, key) = (cert.file()?, key.file()?);
        Some(Self { cert, key })
    }

    /// Both files.
    pub(crate) fn files(&self) -> [PemFile; 2] {
        [self.cert.clone(), self.key.clone()]
    }
}

impl ServerTlsSection {
    /// `None` where clients are served without TLS.
    pub(crate) fn new(options: &Options) -> Option<Self> {
        let (cert, key) = Given::server(options);
        Some(Self {
            pair: PairFiles::new(cert, key)?,
            client_cas: PemFile::all("tls_client_ca_paths", &options.tls_client_ca_paths),
        })
    }
}

impl WorkerTlsSection {
    /// Whether an option asks for more than the system's own trust.
    pub(crate) fn reads_files(&self) -> bool {
        self.pair.is_some() || !self.cas.is_empty()
    }
}

impl From<&Options> for WorkerTlsSection {
    fn from(options: &Options) -> Self {
        let (cert, key) = Given::client(options);
        Self {
            pair: PairFiles::new(cert, key),
            cas: PemFile::all("ca_cert_paths", &options.ca_cert_paths),
            verification: if options.tls_skip_verify {
                Verification::Skipped
            } else {
                Verification::Full
            },
            name: options.worker_tls_name.as_deref().and_then(tls_name),
        }
    }
}

/// A DNS name as certificates have it, and as it is sent to the other end (SNI). Addresses are
/// not sent, so a server could not choose by them.
pub(crate) fn tls_name(text: &str) -> Option<DnsName<'static>> {
    DnsName::try_from(text.to_owned()).ok()
}

/// Checks what can be known without reading a file.
pub(super) fn check_tls(options: &Options) -> Result<(), ConfigError> {
    for (cert, key) in [Given::server(options), Given::client(options)] {
        check_pair(cert, key)?;
    }
    let asks_clients = !options.tls_client_ca_paths.is_empty();
    if asks_clients && options.server_cert_path.is_none() {
        let value = format!("{:?}", options.tls_client_ca_paths);
        let why = "needs server_cert_path: clients show certificates over TLS only";
        return Err(ConfigError::invalid("tls_client_ca_paths", value, why));
    }
    if options.tls_skip_verify && !options.ca_cert_paths.is_empty() {
        let why = "contradicts ca_cert_paths: with it no certificate of a worker is looked at";
        return Err(ConfigError::invalid("tls_skip_verify", true, why));
    }
    match &options.worker_tls_name {
        Some(name) if tls_name(name).is_none() => {
            let why = "is no DNS name";
            Err(ConfigError::invalid("worker_tls_name", name, why))
        }
        _ => Ok(()),
    }
}

/// An option that names a file, and what it is set to.
#[derive(Clone, Copy)]
struct Given<'a> {
    option: &'static str,
    path: Option<&'a str>,
}

impl<'a> Given<'a> {
    fn new(option: &'static str, path: Option<&'a String>) -> Self {
        let path = path.map(String::as_str);
        Self { option, path }
    }

    /// The certificate that clients are shown, and its key.
    fn server(options: &'a Options) -> (Self, Self) {
        let cert = Self::new("server_cert_path", options.server_cert_path.as_ref());
        let key = Self::new("server_key_path", options.server_key_path.as_ref());
        (cert, key)
    }

    /// The certificate that workers are shown, and its key.
    fn client(options: &'a Options) -> (Self, Self) {
        let cert = Self::new("client_cert_path", options.client_cert_path.as_ref());
        let key = Self::new("client_key_path", options.client_key_path.as_ref());
        (cert, key)
    }

    fn file(self) -> Option<PemFile> {
        let (option, path) = (self.option, self.path?.to_owned());
        Some(PemFile { option, path })
    }
}

fn check_pair(cert: Given<'_>, key: Given<'_>) -> Result<(), ConfigError> {
    let (present, path, missing) = match (cert.path, key.path) {
        (Some(path), None) => (cert, path, key),
        (None, Some(path)) => (key, path, cert),
        _ => return Ok(()),
    };
    let flag = match missing.option {
        "server_cert_path" => " (--tls-cert-path)",
        "server_key_path" => " (--tls-key-path)",
        _ => "",
    };
    let missing = missing.option;
    let why = format!("needs {missing}{flag}: a certificate and its key come together");
    Err(ConfigError::invalid(present.option, path, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(options: &Options) -> String {
        check_tls(options).unwrap_err().to_string()
    }

    #[test]
    fn half_a_pair_is_refused_and_names_the_other_half() {
        let path = || Some("/x.pem".to_owned());
        let cases = [
            (
                Options {
                    server_cert_path: path(),
                    ..Options::default()
                },
                ["'server_cert_path'", "needs server_key_path"],
            ),
            (
                Options {
                    client_key_path: path(),
                    ..Options::default()
                },
                ["'client_key_path'", "needs client_cert_path"],
            ),
        ];
        for (options, parts) in cases {
            let error = error(&options);
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn client_certificates_without_tls_and_a_trust_that_is_skipped_are_refused() {
        let files = vec!["/ca.pem".to_owned()];
        let plain = Options {
            tls_client_ca_paths: files.clone(),
            ..Options::default()
        };
        assert!(error(&plain).contains("needs server_cert_path"));
        let both = Options {
            tls_skip_verify: true,
            ca_cert_paths: files,
            ..Options::default()
        };
        assert!(error(&both).contains("contradicts ca_cert_paths"));
    }

    #[test]
    fn name_that_no_certificate_can_have_is_refused() {
        let named = |name: &str| Options {
            worker_tls_name: Some(name.to_owned()),
            ..Options::default()
        };
        for name in ["a b", "", "https://a", "10.0.0.1"] {
            assert!(error(&named(name)).contains("'worker_tls_name'"), "{name}");
        }
        check_tls(&named("engine.svc")).unwrap();
    }
}
