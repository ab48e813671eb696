//! What is read from PEM files, with errors that say what is wrong with which file.

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::error::TlsError;
use super::watched::Contents;
use crate::config::{PairFiles, PemFile};

/// The certificates of a file, in order.
///
/// # Errors
/// When it has none, or one that is broken.
fn certificates(
    file: &PemFile,
    contents: &Contents,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = contents.of(file);
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| {
        let why = format!("holds a broken PEM section: {error}");
        TlsError::unusable(file, why)
    })?;
    if found.is_empty() {
        let why = if has(pem, b"PRIVATE KEY-----") {
            "holds a private key and no certificate"
        } else {
            "holds no certificate in PEM (no BEGIN CERTIFICATE)"
        };
        return Err(TlsError::unusable(file, why));
    }
    Ok(found)
}

/// The certificate, its chain and its key.
///
/// # Errors
/// When a file is broken, or the key is that of another certificate.
pub(crate) fn pair(
    files: &PairFiles,
    contents: &Contents,
    provider: &CryptoProvider,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&files.cert, contents)?;
    let key = private_key(&files.key, contents)?;
    let matched = CertifiedKey::from_der(chain.clone(), key.clone_key(), provider);
    match matched {
        Ok(_) => Ok((chain, key)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let cert = &files.cert.path;
            let why = format!("is not the key of the first certificate in {cert}");
            Err(TlsError::unusable(&files.key, why))
        }
        Err(rustls::Error::InvalidCertificate(error)) => {
            let why = format!("holds an unusable certificate: {error}");
            Err(TlsError::unusable(&files.cert, why))
        }
        Err(error) => {
            let why = format!("holds an unusable private key: {error}");
            Err(TlsError::unusable(&files.key, why))
        }
    }
}

fn private_key(file: &PemFile, contents: &Contents) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = contents.of(file);
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        let why = if has(pem, b"ENCRYPTED") {
            "holds an encrypted private key; store it decrypted".to_owned()
        } else if matches!(error, rustls::pki_types::pem::Error::NoItemsFound) {
            "holds no private key in PEM (no BEGIN PRIVATE KEY)".to_owned()
        } else {
            format!("holds a broken PEM section: {error}")
        };
        TlsError::unusable(file, why)
    })
}

/// Adds the certificates of files to those that are trusted.
///
/// # Errors
/// When a file is broken or has a certificate that cannot be trusted.
pub(crate) fn roots(
    files: &[PemFile],
    contents: &Contents,
    store: &mut RootCertStore,
) -> Result<(), TlsError> {
    for file in files {
        for certificate in certificates(file, contents)? {
            store.add(certificate).map_err(|error| {
                let why = format!("holds a certificate that cannot be trusted: {error}");
                TlsError::unusable(file, why)
            })?;
        }
    }
    Ok(())
}

fn has(pem: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(pem, word).is_some()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    use super::super::provider::provider;
    use super::*;

    fn made() -> Made<rcgen::KeyPair> {
        generate_simple_self_signed(["gw".to_owned()]).unwrap()
    }

    fn files() -> PairFiles {
        let file = |option, path: &str| PemFile {
            option,
            path: path.to_owned(),
        };
        PairFiles {
            cert: file("server_cert_path", "/c.pem"),
            key: file("server_key_path", "/k.pem"),
        }
    }

    fn error(cert: &str, key: &str) -> String {
        let contents = Contents::from_iter([("/c.pem", cert), ("/k.pem", key)]);
        let error = pair(&files(), &contents, &provider()).unwrap_err();
        error.to_string()
    }

    #[test]
    fn pair_that_belongs_together_is_accepted() {
        let made = made();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let contents = Contents::from_iter([("/c.pem", &*cert), ("/k.pem", &*key)]);
        let (chain, _) = pair(&files(), &contents, &provider()).unwrap();
        assert_eq!(chain.len(), 1);
    }

    #[test]
    fn every_bad_file_is_named_with_its_option_and_the_reason() {
        let made = made();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let other = self::made().signing_key.serialize_pem();
        let cut = &cert[..cert.len() / 2];
        let locked = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let no_cert = cert.replace("MII", "AAA");
        for (cert, key, parts) in [
            (
                "",
                &*key,
                ["/c.pem (server_cert_path)", "no certificate in PEM"],
            ),
            (&key, &key, ["/c.pem", "a private key and no certificate"]),
            (cut, &key, ["/c.pem", "broken PEM section"]),
            (&no_cert, &key, ["/c.pem", "unusable certificate"]),
            (
                &cert,
                "",
                ["/k.pem (server_key_path)", "no private key in PEM"],
            ),
            (&cert, &cert, ["/k.pem", "no private key in PEM"]),
            (&cert, &locked, ["/k.pem", "encrypted private key"]),
            (&cert, garbage, ["/k.pem", "unusable private key"]),
            (
                &cert,
                &other,
                ["/k.pem", "not the key of the first certificate in /c.pem"],
            ),
        ] {
            let error = error(cert, key);
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn trust_in_something_that_is_no_certificate_is_an_error() {
        let file = PemFile {
            option: "ca_cert_paths",
            path: "/ca.pem".to_owned(),
        };
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (pem, why) in [(broken, "cannot be trusted"), ("hello", "no certificate")] {
            let contents = Contents::from_iter([("/ca.pem", pem)]);
            let added = roots(
                std::slice::from_ref(&file),
                &contents,
                &mut RootCertStore::empty(),
            );
            let error = added.unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("ca_cert_paths"),
                "{error}"
            );
        }
    }
}
