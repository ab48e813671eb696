//! Errors of a simulated worker.

use std::fmt::Display;
use std::io;

use thiserror::Error;

/// A simulated worker does not start, or rejects a change.
#[derive(Debug, Error)]
pub enum SimError {
    /// An option breaks a rule.
    #[error("invalid value for '{field}': {value} - {why}")]
    Option {
        /// The option or fault.
        field: &'static str,
        /// The invalid value.
        value: String,
        /// The rule.
        why: &'static str,
    },
    /// The worker cannot listen on the address.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Host and port as configured.
        address: String,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The thread or event loop cannot start.
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
