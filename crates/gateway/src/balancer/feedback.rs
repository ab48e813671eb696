//! What the end of an attempt teaches about the worker.

use std::sync::Arc;

use routing::{BreakerSignal, Consequence, Outcome, Trial};
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::fleet::{Fleet, Worker, advance_worker, record_outcome};

/// Counts the end of an attempt.
pub(super) fn count(worker: &Worker, signal: BreakerSignal) {
    let stats = worker.outlier_stats.as_ref();
    match signal {
        BreakerSignal::Success => {
            worker.metrics.successes.inc();
            stats.inspect(|stats| stats.record_success());
        }
        BreakerSignal::Failure => {
            worker.metrics.failures.inc();
            stats.inspect(|stats| stats.record_failure());
        }
        BreakerSignal::Neutral => {}
    }
}

/// Changes the worker's state; a worker that is busy now is looked at again later.
pub(super) fn record(
    fleet: &Arc<Fleet>,
    worker: &Arc<Worker>,
    consequence: Consequence,
    trial: Option<Trial>,
) {
    let busy_for = record_outcome(fleet, worker, consequence, trial);
    if let (Some(pause), Ok(runtime)) = (busy_for, Handle::try_current()) {
        let (fleet, worker) = (Arc::clone(fleet), Arc::clone(worker));
        runtime.spawn(async move {
            sleep(pause).await;
            advance_worker(&fleet, &worker);
        });
    }
}

/// A connection that was lost without a response was the worker's fault.
pub(crate) fn record_lost_connection(fleet: &Arc<Fleet>, worker: &Arc<Worker>) {
    count(worker, BreakerSignal::Failure);
    let consequence = Consequence {
        suspect: false,
        ..Outcome::NoResponse.consequence()
    };
    record(fleet, worker, consequence, None);
}
