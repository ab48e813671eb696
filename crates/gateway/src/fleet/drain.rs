//! Workers that get nothing new and finish what they have: to be removed, or for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::info;

use super::fleet::Fleet;
use super::worker::Worker;

/// A draining worker's load is read this often at least.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// No new requests for this worker from now on; false when it was draining already.
pub(crate) fn start_drain(fleet: &Fleet, worker: &Worker) -> bool {
    let (_, newly) = fleet.update_state(worker, |state| {
        !std::mem::replace(&mut state.draining, true)
    });
    let in_flight = worker.load.own_requests();
    info!(worker = %worker.url(), in_flight, "worker is draining");
    newly
}

/// No new requests for a worker, with all its ranks, until it is undrained. It stays in the fleet.
pub(crate) fn drain_worker(fleet: &Fleet, worker: &Worker) {
    for rank in fleet.workers_of(&worker.endpoint) {
        fleet.update_state(&rank, |state| state.drained = true);
    }
    let in_flight = worker.load.own_requests();
    info!(worker = %worker.url(), in_flight, "worker is drained by request");
}

/// New ranks of a worker that was drained get nothing, either.
pub(super) fn drain_new_ranks(fleet: &Fleet, first: &Worker) {
    if first.availability().drained {
        drain_worker(fleet, first);
    }
}

/// A worker that was drained gets requests again, as its health allows.
pub(crate) fn undrain_worker(fleet: &Fleet, worker: &Worker) {
    for rank in fleet.workers_of(&worker.endpoint) {
        fleet.update_state(&rank, |state| state.drained = false);
    }
    info!(worker = %worker.url(), "worker is undrained by request");
}

/// A worker, with all its ranks, that gets nothing new until this is dropped. It stays in the fleet.
#[derive(Debug)]
pub(crate) struct Withheld {
    fleet: Arc<Fleet>,
    ranks: Vec<Arc<Worker>>,
}

impl Withheld {
    /// Withholds new requests from a worker, and waits for the end of what it has, though not for
    /// ever.
    pub(crate) async fn begin(fleet: &Arc<Fleet>, worker: &Arc<Worker>) -> Self {
        let withheld = Self {
            fleet: Arc::clone(fleet),
            ranks: fleet.workers_of(&worker.endpoint),
        };
        for rank in &withheld.ranks {
            fleet.update_state(rank, |state| state.withheld += 1);
        }
        for rank in &withheld.ranks {
            wait_idle(fleet, rank).await;
        }
        withheld
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        for rank in &self.ranks {
            self.fleet.update_state(rank, |state| state.withheld -= 1);
        }
    }
}

async fn wait_idle(fleet: &Fleet, worker: &Worker) {
    let done = async {
        while worker.load.own_requests() > 0 {
            // Also without a notification: the last one may have been missed.
            let _ = timeout(LOOK_AGAIN, worker.request_done.notified()).await;
        }
    };
    let _ = timeout(fleet.options().drain_timeout, done).await;
}

/// Waits for the end of what a draining worker has, though not for ever; then removes it.
pub(crate) async fn finish_drain(fleet: &Fleet, worker: &Arc<Worker>) {
    wait_idle(fleet, worker).await;
    let in_flight = worker.load.own_requests();
    // The last rank takes the endpoint along.
    let ranks = fleet.workers_of(&worker.endpoint);
    if ranks.iter().all(|rank| rank.id == worker.id) {
        worker.endpoint.mark_removed();
    }
    fleet.remove(worker);
    if fleet.workers_of(&worker.endpoint).is_empty() {
        worker.endpoint.mark_removed();
    }
    info!(worker = %worker.url(), in_flight, "worker removed");
}
