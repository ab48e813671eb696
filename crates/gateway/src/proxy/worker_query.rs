//! What workers are asked, and how long their answers are waited for.

use std::time::Duration;

use bytes::Bytes;
use http::Method;

/// Longest wait for an answer to a question that costs the worker nothing.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a worker to do what takes no generation.
pub(super) const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a generation: a worker's check alone gives itself 20 s.
const GENERATION_TIMEOUT: Duration = Duration::from_secs(25);
/// Longest wait for a worker that is not ready: about that for a connection.
pub(super) const NOT_READY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a worker may be silent before another one is asked beside it.
pub(super) const STAGGER: Duration = Duration::from_secs(1);

/// What workers are asked.
#[derive(Clone, Debug)]
pub(crate) struct WorkerQuery {
    pub(super) method: Method,
    /// The first that a worker has is the one.
    pub(super) paths: &'static [&'static str],
    /// JSON, or nothing.
    pub(super) body: Bytes,
    /// Longest wait for an answer.
    pub(super) timeout: Duration,
    /// A worker that is silent for so long is suspect.
    pub(super) suspect_after: Duration,
}

impl WorkerQuery {
    /// To read something of every worker.
    pub(crate) fn get(paths: &'static [&'static str]) -> Self {
        Self {
            method: Method::GET,
            paths,
            body: Bytes::new(),
            timeout: QUERY_TIMEOUT,
            suspect_after: QUERY_TIMEOUT,
        }
    }

    /// To read what any worker can say at once.
    pub(crate) fn information(paths: &'static [&'static str]) -> Self {
        Self {
            suspect_after: STAGGER,
            ..Self::get(paths)
        }
    }

    /// To have a worker generate something. A busy one is silent meanwhile.
    pub(crate) fn generation(paths: &'static [&'static str]) -> Self {
        Self {
            timeout: GENERATION_TIMEOUT,
            ..Self::get(paths)
        }
    }

    /// To do something.
    pub(crate) fn post(paths: &'static [&'static str], body: Bytes) -> Self {
        Self {
            method: Method::POST,
            paths,
            body,
            timeout: ORDER_TIMEOUT,
            suspect_after: ORDER_TIMEOUT,
        }
    }

    /// To have a request given up, which takes a worker no time.
    pub(super) fn abort(body: Bytes) -> Self {
        Self {
            timeout: QUERY_TIMEOUT,
            suspect_after: QUERY_TIMEOUT,
            ..Self::post(&["/abort_request"], body)
        }
    }
}
