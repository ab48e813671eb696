//! Why files give no certificate, key or trust.

use std::io;

use thiserror::Error;

use crate::config::PemFile;

/// Why files give no certificate, key or trust.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    #[error("cannot read {} ({}): {why}", file.path, file.option)]
    Unreadable { file: PemFile, why: io::Error },
    #[error("{} ({}) {why}", file.path, file.option)]
    Unusable { file: PemFile, why: String },
    /// Not the fault of one file.
    #[error("{0}")]
    Other(String),
}

impl TlsError {
    pub(crate) fn unusable(file: &PemFile, why: impl Into<String>) -> Self {
        Self::Unusable {
            file: file.clone(),
            why: why.into(),
        }
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Other(error.to_string())
    }
}
