//! A request from its head to the last byte of its response, counted once.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::request_log::{Entry, Outcome, bump};
use super::worker::Worker;

/// An inference call from its head to its last byte; counts it exactly once.
#[derive(Debug)]
pub(crate) struct Visit {
    worker: Arc<Worker>,
    entry: Option<Arc<Entry>>,
    inference: bool,
    over: bool,
}

impl Visit {
    pub(crate) fn new(worker: &Arc<Worker>, inference: bool) -> Self {
        if inference {
            bump(&worker.counts.requests);
            bump(&worker.counts.in_flight);
        } else {
            bump(&worker.counts.control_requests);
        }
        Self {
            worker: Arc::clone(worker),
            entry: None,
            inference,
            over: false,
        }
    }

    pub(crate) fn record(&mut self, entry: Option<Arc<Entry>>) {
        self.entry = entry;
    }

    /// The whole answer is out.
    pub(crate) fn finish(&mut self) {
        self.end(Outcome::Finished);
    }

    fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if let Some(entry) = self.entry.take() {
            entry.end(outcome);
        }
        if !self.inference {
            return;
        }
        self.worker.counts.in_flight.fetch_sub(1, Relaxed);
        if outcome == Outcome::Disconnected {
            bump(&self.worker.counts.disconnects);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.end(Outcome::Disconnected);
    }
}
