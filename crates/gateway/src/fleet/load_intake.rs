//! What a report of a worker on its load changes.

use routing::LoadFigures;

use super::load_report::{LoadReport, LoadSource};
use super::worker::Worker;

/// A worker reports this load; `before` is what this gateway knew when it was asked. What is
/// pushed counts in place of what is polled, while it comes.
pub(super) fn take_report(
    worker: &Worker,
    report: LoadReport,
    source: LoadSource,
    before: LoadFigures,
) {
    if worker.reported.note(report, source) {
        // Between the question and the answer requests come and go: the higher count is no phantom.
        let known = before.max(worker.load.known());
        worker.load.set_others(report.figures(), known);
    }
}
