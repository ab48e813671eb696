//! A request from its head to the last byte of its response, counted once.

use std::sync::Arc;

use super::request_log::{LogEntry, Outcome, decrement, increment};
use super::worker::Worker;

/// A request in progress. It ends as [`Outcome::Finished`] or, if dropped before, as
/// [`Outcome::Disconnected`].
#[derive(Debug)]
pub(crate) struct RequestRecord {
    worker: Arc<Worker>,
    entry: Option<Arc<LogEntry>>,
    kind: Kind,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Inference,
    Control,
}

impl RequestRecord {
    /// Counts an inference request.
    pub(crate) fn inference(worker: &Arc<Worker>) -> Self {
        increment(&worker.counts.requests);
        increment(&worker.counts.in_flight);
        Self::new(worker, Kind::Inference)
    }

    /// Counts any other request.
    pub(crate) fn control(worker: &Arc<Worker>) -> Self {
        increment(&worker.counts.control_requests);
        Self::new(worker, Kind::Control)
    }

    fn new(worker: &Arc<Worker>, kind: Kind) -> Self {
        Self {
            worker: Arc::clone(worker),
            entry: None,
            kind,
            ended: false,
        }
    }

    /// Sets the log entry that gets the outcome.
    pub(crate) fn set_entry(&mut self, entry: Option<Arc<LogEntry>>) {
        self.entry = entry;
    }

    /// Ends the request: its whole response was handed to the connection.
    pub(crate) fn finish(&mut self) {
        self.end(Outcome::Finished);
    }

    fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(entry) = self.entry.take() {
            entry.end(outcome);
        }
        if self.kind == Kind::Control {
            return;
        }
        decrement(&self.worker.counts.in_flight);
        if outcome == Outcome::Disconnected {
            increment(&self.worker.counts.disconnects);
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        self.end(Outcome::Disconnected);
    }
}
