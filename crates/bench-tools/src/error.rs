//! Why a tool ends without a result.

use std::io;
use std::ops::RangeInclusive;

use rustls::pki_types::pem;

/// Why the load generator or the mock worker ends without a result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The argument is not JSON, or has an unknown or missing field.
    #[error("bad options: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is out of its range.
    #[error("{field} must be between {low} and {high}")]
    Range {
        /// Name of the option.
        field: &'static str,
        /// The lowest value that is accepted.
        low: u64,
        /// The highest value that is accepted.
        high: u64,
    },
    /// A process of the measured target has no `/proc` entry (any more).
    #[error("process {pid} has ended")]
    ProcessEnded {
        /// Its id.
        pid: u32,
    },
    /// A certificate or key cannot be read.
    #[error("TLS: {0}")]
    Pem(#[from] pem::Error),
    /// A certificate or key cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A socket or the runtime failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An error unless the value is in the range.
pub(crate) fn within(
    field: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
) -> Result<(), BenchError> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = range.into_inner();
    Err(BenchError::Range { field, low, high })
}
