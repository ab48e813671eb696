//! The end of a gateway, for the threads that wait for it.

use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Becomes true once, when everything has ended.
#[derive(Debug, Default)]
pub(super) struct Stopped {
    ended: Mutex<bool>,
    changed: Condvar,
    /// Why it ended without being asked to.
    failure: OnceLock<String>,
}

impl Stopped {
    pub(super) fn set(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(super) fn fail(&self, why: String) {
        let _ = self.failure.set(why);
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Waits up to `limit`; returns whether everything has ended.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let stopped = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(stopped, limit, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
