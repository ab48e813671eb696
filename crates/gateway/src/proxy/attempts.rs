//! The attempts of one request, and whose fault their failures are.

use std::sync::Arc;

use routing::Outcome;
use tokio::time::Instant;

use crate::balancer::{InFlight, record_lost_connection};
use crate::fleet::{Fleet, Worker};

/// The attempts of one request so far.
#[derive(Default)]
pub(super) struct Attempts {
    /// Slots of the workers where it failed.
    pub(super) tried: Vec<usize>,
    /// Attempts and pauses between rounds of attempts.
    pub(super) count: u32,
    /// The end of its time, counted from its first attempt.
    pub(super) deadline: Option<Instant>,
    /// The end of all its waiting for a worker.
    pub(super) queue_deadline: Option<Instant>,
    /// The one retry that a lost connection gives for free has been used.
    pub(super) free_retry_used: bool,
    /// The workers that closed the connection without a response.
    lost: Vec<Arc<Worker>>,
    /// Slot of the first worker that responded with a server error.
    failed_first: Option<usize>,
}

impl Attempts {
    /// An attempt ended without success. What that says about the worker depends on how other
    /// workers fared with the request.
    pub(super) fn finish(&mut self, in_flight: &mut InFlight, outcome: Outcome) {
        let slot = in_flight.worker.slot;
        let mut verdict = outcome;
        if outcome == Outcome::NoResponse {
            self.lost.push(Arc::clone(&in_flight.worker));
        }
        if matches!(outcome, Outcome::Answered(500..=599)) && !in_flight.is_trial() {
            // A request that fails at several workers may be at fault itself.
            if *self.failed_first.get_or_insert(slot) != slot {
                verdict = Outcome::Abandoned;
            }
        }
        in_flight.finish(verdict);
    }

    /// Holds lost connections against the worker, unless several workers closed theirs: then it
    /// was the request, which must not take out a whole fleet.
    pub(super) fn assign_blame(&self, fleet: &Arc<Fleet>) {
        let same = |pair: &[Arc<Worker>]| matches!(pair, [one, other] if one.slot == other.slot);
        if self.lost.windows(2).all(same) {
            for worker in &self.lost {
                record_lost_connection(fleet, worker);
            }
        }
    }
}
