//! The attempts of one request, and whose fault their failures are.

use std::sync::Arc;

use routing::Outcome;
use tokio::time::Instant;

use crate::balancer::{InFlight, record_blame};
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
    /// The slot of the worker whose refusal is disputed: the one retry that gives has been used,
    /// and the worker is not asked again.
    disputed: Option<usize>,
    /// A worker has served it.
    served: bool,
    /// The slot of the first worker that lost its connection.
    lost: Option<usize>,
    /// Another one did, too.
    ends_workers: bool,
    /// Failures that may be the request's own fault.
    undecided: Vec<Failure>,
}

/// A failure whose blame depends on how other workers fare with the request.
struct Failure {
    worker: Arc<Worker>,
    kind: FailureKind,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// The connection ended before the first byte.
    Lost,
    /// A server error.
    ServerError,
    /// A refusal that may be this worker's alone.
    Disputed,
}

impl FailureKind {
    fn of(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::NoResponse => Some(Self::Lost),
            Outcome::Answered(501 | 505 | 508) => None,
            Outcome::Answered(500..=599) => Some(Self::ServerError),
            Outcome::Disputed(_) => Some(Self::Disputed),
            _ => None,
        }
    }
}

impl Attempts {
    /// An attempt ended without success. What that says about the worker may depend on how other
    /// workers fare with the request.
    pub(super) fn finish(&mut self, in_flight: &mut InFlight, outcome: Outcome) {
        let mut verdict = outcome;
        if outcome == Outcome::NoResponse {
            let slot = in_flight.worker.slot;
            self.ends_workers |= *self.lost.get_or_insert(slot) != slot;
        }
        if let Some(kind) = FailureKind::of(outcome).filter(|_| !in_flight.is_trial()) {
            let worker = Arc::clone(&in_flight.worker);
            let failure = Failure {
                worker,
                kind,
                outcome,
            };
            self.undecided.push(failure);
            if kind == FailureKind::ServerError {
                verdict = Outcome::Abandoned;
            }
        }
        in_flight.finish(verdict);
    }

    /// A worker has refused the request for a reason that may be its own.
    pub(super) fn dispute(&mut self) {
        self.disputed = self.undecided.last().map(|failure| failure.worker.slot);
    }

    /// Whether a refusal has been disputed before.
    pub(super) fn was_disputed(&self) -> bool {
        self.disputed.is_some()
    }

    /// Whether the only worker that there is has refused the request.
    pub(super) fn is_refused_by_all(&self) -> bool {
        self.disputed
            .is_some_and(|disputed| self.tried == [disputed])
    }

    /// Workers that failed may be tried again.
    pub(super) fn begin_round(&mut self) {
        self.tried.clear();
        self.tried.extend(self.disputed);
    }

    /// A worker has begun to serve the request.
    pub(super) fn set_served(&mut self) {
        self.served = true;
    }

    /// Whether two workers have closed the connection on the request. It may have ended their
    /// processes, so no third one gets it.
    pub(super) fn ends_workers(&self) -> bool {
        self.ends_workers
    }

    /// Blames the workers. A failure that several workers had alike was the request's: it must
    /// not take out a whole fleet. A disputed refusal is blamed when another worker served.
    pub(super) fn assign_blame(&self, fleet: &Arc<Fleet>) {
        for failure in &self.undecided {
            let blamed = match failure.kind {
                FailureKind::Disputed => self.served,
                kind => self.of_one_worker(kind),
            };
            if blamed {
                record_blame(fleet, &failure.worker, failure.outcome);
            }
        }
    }

    fn of_one_worker(&self, kind: FailureKind) -> bool {
        let mut slots = self.undecided.iter().filter(|failure| failure.kind == kind);
        let first = slots.next().map(|failure| failure.worker.slot);
        slots.all(|failure| Some(failure.worker.slot) == first)
    }
}
