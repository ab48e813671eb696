//! Why a gateway did not start.

use std::fmt::Display;

use thiserror::Error;

use crate::config::ConfigError;

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

impl StartError {
    pub(super) fn environment(what: impl Into<String>, why: impl Display) -> Self {
        Self::Environment {
            what: what.into(),
            why: why.to_string(),
        }
    }
}
