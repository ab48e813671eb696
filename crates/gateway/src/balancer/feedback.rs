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
            worker.metrics().successes.inc();
            stats.inspect(|stats| stats.record_success());
        }
        BreakerSignal::Failure | BreakerSignal::ConnectionFailure => {
            worker.metrics().failures.inc();
            stats.inspect(|stats| stats.record_failure());
        }
        BreakerSignal::Neutral => {}
    }
}

/// Counts a refusal of the worker's as the client's fault, where workers are compared.
pub(super) fn count_refusal(worker: &Worker, outcome: Outcome) {
    if let (Some(stats), Outcome::Answered(400..=499) | Outcome::Disputed(_)) =
        (&worker.outlier_stats, outcome)
    {
        stats.record_refusal();
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

/// A failure that was undecided at first was the worker's fault.
pub(crate) fn record_blame(fleet: &Arc<Fleet>, worker: &Arc<Worker>, outcome: Outcome) {
    let consequence = Consequence {
        // That was said when the attempt ended.
        suspect: false,
        busy: false,
        ..outcome.consequence()
    };
    count(worker, consequence.signal);
    record(fleet, worker, consequence, None);
}
