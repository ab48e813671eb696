//! What has become of a request so far.

use std::sync::Arc;

use routing::Outcome;
use tokio::time::Instant;

use crate::fleet::{InFlight, Worker};

/// The tries of one request.
#[derive(Default)]
pub(super) struct Attempts {
    /// Slots of the workers where it failed.
    pub(super) tried: Vec<usize>,
    pub(super) count: u32,
    /// The end of its time, counted from its first place at a worker.
    pub(super) deadline: Option<Instant>,
    /// The end of all its waiting for such a place.
    pub(super) queue_deadline: Option<Instant>,
    /// The one retry that a lost connection gives for free has been had.
    pub(super) free_retry_used: bool,
    /// The workers that hung up on it without an answer.
    lost: Vec<Arc<Worker>>,
    /// The first worker that answered with a server error.
    broken: Option<usize>,
}

impl Attempts {
    /// Notes how a try ended that was no success; what it says about the worker is settled
    /// with an eye on what the others made of the request.
    pub(super) fn finish(&mut self, in_flight: &mut InFlight, outcome: Outcome) {
        let slot = in_flight.worker.slot;
        let mut verdict = outcome;
        if outcome == Outcome::NoResponse {
            self.lost.push(Arc::clone(&in_flight.worker));
        }
        if matches!(outcome, Outcome::Answered(500..=599)) && !in_flight.is_trial() {
            // A request that fails here and there may be what is wrong.
            if *self.broken.get_or_insert(slot) != slot {
                verdict = Outcome::Abandoned;
            }
        }
        in_flight.finish(verdict);
    }

    /// Holds lost connections against the worker, unless several hung up: then it was the
    /// request, which must not take a whole fleet out.
    pub(super) fn blame(&self) {
        let same = |pair: &[Arc<Worker>]| matches!(pair, [one, other] if one.slot == other.slot);
        if self.lost.windows(2).all(same) {
            for worker in &self.lost {
                worker.record_lost_connection();
            }
        }
    }
}
