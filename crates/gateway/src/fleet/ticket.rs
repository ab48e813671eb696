//! One try at a worker: its place in the load, and what its end tells about the worker.

use std::sync::{Arc, Weak};

use routing::{Lease, Mark, Meaning, Outcome, Trial};
use tokio::time::Instant;

use super::Worker;

/// What a request costs a worker besides its prompt, in tokens: so that a prompt of three
/// does not make it look slow.
const TOKENS_PER_REQUEST: u64 = 256;

/// A request's place at a worker. Dropped unsettled, the try counts as abandoned.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) worker: Arc<Worker>,
    /// Given back first of all when the ticket is dropped.
    lease: Option<Lease>,
    /// It decides about a half-open breaker.
    trial: Option<Trial>,
    settled: bool,
    /// When it was taken and for how many tokens, where workers are compared.
    compared: Option<(Instant, u64)>,
}

impl Ticket {
    /// `tokens`: those of the whole prompt.
    pub(super) fn new(
        worker: Arc<Worker>,
        lease: Lease,
        tokens: u64,
        trial: Option<Trial>,
    ) -> Self {
        let compared = worker.tally.as_ref().map(|_| (Instant::now(), tokens));
        Self {
            worker,
            lease: Some(lease),
            trial,
            settled: false,
            compared,
        }
    }

    /// For a request that no policy placed, without a prompt.
    pub(crate) fn aside(worker: &Arc<Worker>) -> Self {
        let lease = worker.load.lease(0);
        Self::new(Arc::clone(worker), lease, 0, None)
    }

    /// The worker has begun to answer; whether that is a stream, whose first byte comes when
    /// the prompt is prefilled.
    pub(crate) fn first_byte(&mut self, is_stream: bool) {
        if let Some(lease) = &mut self.lease {
            lease.first_byte();
        }
        let worker = &self.worker;
        if let (Some(tally), Some((since, tokens))) = (&worker.tally, self.compared.take())
            && is_stream
        {
            tally.first_byte(since.elapsed(), tokens + TOKENS_PER_REQUEST);
        }
        if let Some(trial) = &mut self.trial
            && let Some(fleet) = worker.home.get().and_then(Weak::upgrade)
        {
            fleet.trial_answered(worker, trial);
        }
    }

    /// Whether its end says something by itself, whatever others make of the request.
    pub(crate) fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// The try has ended; only the first call counts.
    pub(crate) fn settle(&mut self, outcome: Outcome) {
        if self.settled {
            return;
        }
        self.settled = true;
        let worker = &self.worker;
        let mut meaning = outcome.meaning();
        if outcome == Outcome::Lost && self.trial.is_none() {
            // Whose fault it was shows once somebody else has been asked.
            meaning.mark = Mark::Neutral;
        }
        match meaning.mark {
            Mark::Success => worker.metrics.successes.inc(),
            Mark::Failure => worker.metrics.failures.inc(),
            Mark::Neutral => {}
        }
        if let Some(tally) = worker
            .tally
            .as_ref()
            .filter(|_| meaning.mark != Mark::Neutral)
        {
            tally.ended(meaning.mark == Mark::Failure);
        }
        let tells_nothing = match meaning.mark {
            Mark::Success => worker.is_clean(),
            Mark::Failure => false,
            Mark::Neutral => true,
        };
        // The way of nearly every request: nothing to learn, no lock.
        if (self.trial.is_some() || meaning.suspect || meaning.busy || !tells_nothing)
            && let Some(fleet) = worker.home.get().and_then(Weak::upgrade)
        {
            fleet.learn(worker, meaning, self.trial);
        }
    }
}

impl Worker {
    /// A lost connection was its fault.
    pub(crate) fn blame(self: &Arc<Self>) {
        self.metrics.failures.inc();
        if let Some(tally) = &self.tally {
            tally.ended(true);
        }
        if let Some(fleet) = self.home.get().and_then(Weak::upgrade) {
            let meaning = Meaning {
                suspect: false,
                ..Outcome::Lost.meaning()
            };
            fleet.learn(self, meaning, None);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(Outcome::Abandoned);
        drop(self.lease.take());
        self.worker.one_left();
    }
}
