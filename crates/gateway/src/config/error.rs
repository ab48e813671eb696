//! Configuration mistakes.

use std::fmt::Display;

use thiserror::Error;

use super::feature::Feature;
use super::file::FileError;
use super::worker_url::WorkerUrl;

/// A configuration mistake: which option, its value, and what is allowed.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The value breaks a rule.
    #[error("Configuration error: Invalid value for field '{field}': {value} - {why}")]
    Invalid {
        /// The option.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        why: String,
    },
    /// The feature does not exist yet.
    #[error("Configuration error: option '{field}' {feature}")]
    Unbuilt {
        /// The option.
        field: &'static str,
        /// The feature it waits for.
        feature: Feature,
    },
    /// The configuration file has mistakes, or cannot be read.
    #[error("Configuration error: {0}")]
    File(FileError),
    /// The value differs from the one in force and takes a restart.
    #[error("Configuration error: {} cannot change while the gateway runs; restart it", quoted(.0))]
    Fixed(Vec<&'static str>),
}

/// `option 'a'`, or `options 'a', 'b'`.
fn quoted(names: &[&str]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
    format!("option{plural} {}", names.join(", "))
}

impl ConfigError {
    pub(super) fn unbuilt(field: &'static str, feature: Feature) -> Self {
        Self::Unbuilt { field, feature }
    }

    pub(crate) fn worker_url(url: &str, why: &'static str) -> Self {
        Self::invalid("worker_url", WorkerUrl::quote(url), why)
    }

    pub(crate) fn invalid(
        field: &'static str,
        value: impl Display,
        why: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            field,
            value: value.to_string(),
            why: why.into(),
        }
    }
}
