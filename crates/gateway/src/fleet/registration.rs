//! A worker that somebody waits for: one that comes for them alone goes with them.

use std::sync::Arc;

use super::{Registry, Worker};

/// The wait of one client for one worker. Dropped before the worker is up, it takes back the
/// registration, unless somebody else wants the worker, too.
#[derive(Debug)]
pub(crate) struct PendingRegistration {
    registry: Arc<Registry>,
    worker: Arc<Worker>,
    settled: bool,
}

/// Why a worker that somebody waited for is not up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartupError {
    /// It took too long, and is not registered any more.
    TimedOut,
    /// It took too long; others want it.
    TimedOutButShared,
    /// Somebody has removed it.
    Removed,
}

impl PendingRegistration {
    pub(super) fn new(registry: Arc<Registry>, worker: Arc<Worker>) -> Self {
        Self {
            registry,
            worker,
            settled: false,
        }
    }

    /// Who is waited for.
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Waits for the worker, no longer than it may take to come up.
    pub(crate) async fn wait(mut self) -> Result<(), StartupError> {
        let is_up = self.registry.wait_ready(&self.worker).await;
        self.settled = true;
        if is_up {
            self.registry.confirm(&self.worker);
            return Ok(());
        }
        let removed = self.worker.is_draining();
        Err(match self.registry.release(&self.worker) {
            _ if removed => StartupError::Removed,
            true => StartupError::TimedOutButShared,
            false => StartupError::TimedOut,
        })
    }
}

impl Drop for PendingRegistration {
    fn drop(&mut self) {
        if !self.settled {
            self.registry.release(&self.worker);
        }
    }
}
