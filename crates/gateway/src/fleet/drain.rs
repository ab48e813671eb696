//! Removing a worker without losing what it has.

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
    let in_flight = worker.load.requests();
    info!(worker = %worker.url(), in_flight, "worker is draining");
    newly
}

/// Waits for the end of what a draining worker has, though not for ever; then removes it.
pub(crate) async fn finish_drain(fleet: &Fleet, worker: &Arc<Worker>) {
    let done = async {
        while worker.load.requests() > 0 {
            // Also without a notification: the last one may have been missed.
            let _ = timeout(LOOK_AGAIN, worker.request_done.notified()).await;
        }
    };
    let _ = timeout(fleet.options.drain_timeout, done).await;
    let in_flight = worker.load.requests();
    worker.endpoint.mark_removed();
    fleet.remove(worker);
    info!(worker = %worker.url(), in_flight, "worker removed");
}
