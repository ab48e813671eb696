//! What has become of a request so far.

use std::sync::Arc;

use routing::Outcome;
use tokio::time::Instant;

use crate::fleet::{Ticket, Worker};

/// The tries of one request.
#[derive(Default)]
pub(super) struct Course {
    /// Slots of the workers where it failed.
    pub(super) tried: Vec<usize>,
    pub(super) tries: u32,
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

impl Course {
    /// Notes how a try ended that was no success; what it says about the worker is settled
    /// with an eye on what the others made of the request.
    pub(super) fn settle(&mut self, ticket: &mut Ticket, outcome: Outcome) {
        let slot = ticket.worker.slot;
        let mut verdict = outcome;
        if outcome == Outcome::Lost {
            self.lost.push(Arc::clone(&ticket.worker));
        }
        if matches!(outcome, Outcome::Answered(500..=599)) && !ticket.is_trial() {
            // A request that fails here and there may be what is wrong.
            if *self.broken.get_or_insert(slot) != slot {
                verdict = Outcome::Abandoned;
            }
        }
        ticket.settle(verdict);
    }

    /// Holds lost connections against the worker, unless several hung up: then it was the
    /// request, which must not take a whole fleet out.
    pub(super) fn blame(&self) {
        let same = |pair: &[Arc<Worker>]| matches!(pair, [one, other] if one.slot == other.slot);
        if self.lost.windows(2).all(same) {
            for worker in &self.lost {
                worker.blame();
            }
        }
    }
}
