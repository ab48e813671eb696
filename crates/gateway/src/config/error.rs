//! Configuration mistakes.

use std::fmt::Display;

use thiserror::Error;

use super::feature::Feature;
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
    #[error("Configuration error: option '{field}'{flag} {feature}")]
    Unbuilt {
        /// The option.
        field: &'static str,
        /// Its flag in brackets, where that is called differently.
        flag: &'static str,
        /// The feature it waits for.
        feature: Feature,
    },
}

impl ConfigError {
    pub(super) fn unbuilt(field: &'static str, flag: &'static str, feature: Feature) -> Self {
        Self::Unbuilt {
            field,
            flag,
            feature,
        }
    }

    pub(crate) fn worker_url(url: &str, why: &'static str) -> Self {
        Self::invalid("worker_url", WorkerUrl::quote(url), why)
    }

    pub(super) fn invalid(
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
