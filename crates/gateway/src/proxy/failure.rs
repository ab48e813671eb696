//! A request that got no reply of a worker.

use std::sync::Arc;

use crate::error::Error;
use crate::fleet::Worker;

/// Why a request failed, and at which worker, if it reached one.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) worker: Option<Arc<Worker>>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            worker: None,
        }
    }
}

impl Failure {
    pub(super) fn at(worker: &Arc<Worker>) -> impl FnOnce(Error) -> Self {
        let worker = Some(Arc::clone(worker));
        |error| Self { error, worker }
    }
}
