//! A worker as one rebuild of the snapshot sees it.

use std::sync::Arc;

use crate::fleet::{Availability, ModelInfo, Worker, WorkerConfig};

/// A worker, read once: what changes meanwhile must not be seen by one part of a rebuild only.
#[derive(Debug)]
pub(super) struct WorkerReading {
    pub(super) worker: Arc<Worker>,
    pub(super) info: Arc<ModelInfo>,
    pub(super) config: Arc<WorkerConfig>,
    pub(super) availability: Availability,
}

/// What a ready worker's state lets it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Selectable,
    /// Only when no other may have a request.
    Fallback,
    /// Its breaker lets nothing through.
    Rejected,
}

impl WorkerReading {
    /// Whether it is in slow start.
    pub(super) fn is_warming_up(&self) -> bool {
        self.availability.recovered_at.is_some() && self.access() == Some(Access::Selectable)
    }

    /// `None` for a worker that gets nothing.
    pub(super) fn access(&self) -> Option<Access> {
        let availability = self.availability;
        if availability.selectable {
            Some(Access::Selectable)
        } else if availability.fallback {
            Some(Access::Fallback)
        } else {
            availability.rejected.then_some(Access::Rejected)
        }
    }
}

impl From<&Arc<Worker>> for WorkerReading {
    fn from(worker: &Arc<Worker>) -> Self {
        Self {
            availability: worker.availability(),
            info: worker.endpoint.model_info.load_full(),
            config: worker.endpoint.config.load_full(),
            worker: Arc::clone(worker),
        }
    }
}
