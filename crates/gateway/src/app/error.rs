//! Why a gateway did not start.

use std::fmt::Display;

use thiserror::Error;

use crate::config::ConfigError;
use crate::tls::TlsError;

/// Why a gateway did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The options are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine does not give what the options ask for.
    #[error("cannot {what}: {why}")]
    Environment {
        /// What was tried.
        what: String,
        /// What the system said.
        why: String,
    },
}

impl From<TlsError> for StartError {
    /// A file that is not there is a mistake in the options, one that is broken is not.
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Unreadable { file, why } => {
                let why = format!("cannot be read: {why}");
                Self::Config(ConfigError::invalid(file.option, file.path, why))
            }
            error => Self::environment("use certificates", error),
        }
    }
}

impl StartError {
    pub(super) fn environment(what: impl Into<String>, why: impl Display) -> Self {
        Self::Environment {
            what: what.into(),
            why: why.to_string(),
        }
    }
}
