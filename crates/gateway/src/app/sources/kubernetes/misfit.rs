//! Pods that cannot be followed.

use thiserror::Error;

/// Why a pod is no worker although its labels say so.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Misfit {
    #[error("{annotation} is {text:?}, not ports separated by commas")]
    Ports { annotation: String, text: String },
    #[error("{annotation} has {ports} ports for {workers} workers")]
    BootstrapPorts {
        annotation: String,
        ports: usize,
        workers: usize,
    },
    #[error("{annotation} is {text:?}, neither http nor https")]
    Scheme {
        annotation: &'static str,
        text: String,
    },
    #[error("it has no port that is named {0:?}")]
    NoPort(String),
    #[error("{url} {why}")]
    Url { url: String, why: &'static str },
}
