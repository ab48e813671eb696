//! A worker that somebody waits for: one that comes for them alone goes with them.

use std::sync::Arc;

use super::{Register, Worker};

/// The wait of one client for one worker. Dropped before the worker is up, it takes back the
/// registration, unless somebody else wants the worker, too.
#[derive(Debug)]
pub(crate) struct Claim {
    register: Arc<Register>,
    worker: Arc<Worker>,
    settled: bool,
}

/// Why a worker that somebody waited for is not up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotUp {
    /// It took too long, and is not registered any more.
    Late,
    /// It took too long; others want it.
    LateButKept,
    /// Somebody has removed it.
    Removed,
}

impl Claim {
    pub(super) fn new(register: Arc<Register>, worker: Arc<Worker>) -> Self {
        Self {
            register,
            worker,
            settled: false,
        }
    }

    /// Who is waited for.
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Waits for the worker, no longer than it may take to come up.
    pub(crate) async fn wait(mut self) -> Result<(), NotUp> {
        let is_up = self.register.until_ready(&self.worker).await;
        self.settled = true;
        if is_up {
            self.register.keep(&self.worker);
            return Ok(());
        }
        let removed = self.worker.is_leaving();
        Err(match self.register.let_go(&self.worker) {
            _ if removed => NotUp::Removed,
            true => NotUp::LateButKept,
            false => NotUp::Late,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.settled {
            self.register.let_go(&self.worker);
        }
    }
}
