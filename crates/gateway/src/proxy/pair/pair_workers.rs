//! The workers of a pair.

use std::sync::Arc;

use crate::fleet::Worker;

/// The workers of a pair.
pub(super) struct PairWorkers {
    pub(super) prefill: Arc<Worker>,
    pub(super) decode: Arc<Worker>,
}
