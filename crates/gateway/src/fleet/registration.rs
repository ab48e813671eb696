//! A registration held by a waiting client; undone on drop unless another client holds it too.

use std::sync::Arc;

use super::model_info::Labels;
use super::registration_error::RegistrationError;
use super::registry::Registry;
use super::spec::WorkerSpec;
use super::transitions;
use super::worker::Worker;
use crate::config::WorkerUrl;

/// The wait of one client for one worker.
#[derive(Debug)]
pub(crate) struct PendingRegistration {
    registry: Arc<Registry>,
    worker: Arc<Worker>,
    settled: bool,
}

/// Why a worker that a client waited for is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartupError {
    /// It took too long; the registration is undone.
    TimedOut,
    /// It took too long; other clients hold the registration.
    TimedOutButShared,
    /// It was removed meanwhile.
    Removed,
}

impl PendingRegistration {
    /// Registers the worker at `url` for a client that waits for it; see [`Registry::add`].
    ///
    /// # Errors
    /// As [`Registry::add`].
    pub(crate) fn start(
        registry: &Arc<Registry>,
        url: &WorkerUrl,
        build_spec: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, RegistrationError>,
    ) -> Result<Self, RegistrationError> {
        let worker = registry.add_while_waiting(url, build_spec)?;
        Ok(Self {
            registry: Arc::clone(registry),
            worker,
            settled: false,
        })
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Waits for the worker to become ready, no longer than it may take.
    ///
    /// # Errors
    /// When it is not ready by then.
    pub(crate) async fn wait(mut self) -> Result<(), StartupError> {
        let (fleet, limit) = (self.registry.fleet(), self.registry.startup_timeout());
        let ready = transitions::wait_ready(fleet, &self.worker, limit).await;
        self.settled = true;
        if ready {
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
