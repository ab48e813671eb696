//! Why a simulated worker does not start.

use std::fmt::Display;
use std::io;

use thiserror::Error;

/// Why a simulated worker does not start, or refuses a change.
#[derive(Debug, Error)]
pub enum SimError {
    /// An option breaks a rule.
    #[error("invalid value for '{field}': {value} - {why}")]
    Option {
        /// The option or fault.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        why: &'static str,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Host and port as given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// No thread or event loop to run on.
    #[error("cannot start the worker's thread: {0}")]
    Thread(#[from] io::Error),
}

impl SimError {
    pub(crate) fn option(field: &'static str, value: impl Display, why: &'static str) -> Self {
        Self::Option {
            field,
            value: value.to_string(),
            why,
        }
    }
}
