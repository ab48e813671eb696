//! Why a reply ended before its end.

use std::time::Duration;

use thiserror::Error;

use crate::upstream::UpstreamError;

/// Why a reply ended before its end. The client sees its connection end abnormally.
#[derive(Debug, Error)]
pub(crate) enum ReplyError {
    /// The exchange with the worker failed.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The client has taken nothing for too long.
    #[error("client took nothing of the reply for too long")]
    ClientStalled,
    /// A handler's body failed.
    #[error(transparent)]
    Api(#[from] axum::Error),
    /// The worker's process is gone, as its probes show.
    #[error("worker was lost amid the body")]
    WorkerLost,
    /// The prefill worker of the pair failed before it was done.
    #[error("prefill worker {worker} failed amid the body")]
    PrefillFailed { worker: String },
    /// The answer is too large to be merged with the prefill worker's.
    #[error("the answer is too large to be merged with that of the prefill worker")]
    NotMerged,
    /// An event is too large to be joined with those of other answers.
    #[error("an event is too large to be joined with those of the other answers")]
    NotJoined,
    /// One of several answers failed; its error has been passed on.
    #[error("one of several answers failed amid the body")]
    SampleFailed,
    /// The worker fell silent amid the body.
    #[error("worker sent nothing for {} s amid the body", .0.as_secs())]
    Idle(Duration),
}
