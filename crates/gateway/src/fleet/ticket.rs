//! One try at a worker: its place in the load, and what its end tells about the worker.

use std::sync::{Arc, Weak};

use routing::{Lease, Mark, Meaning, Outcome};
use tokio::time::Instant;

use super::Worker;

/// A request's place at a worker. Dropped unsettled, the try counts as abandoned.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) worker: Arc<Worker>,
    /// Given back first of all when the ticket is dropped.
    lease: Option<Lease>,
    /// It holds the one place of a half-open breaker.
    on_trial: bool,
    settled: bool,
    /// When it was taken and for how many uncached tokens, where workers are compared.
    compared: Option<(Instant, u64)>,
}

impl Ticket {
    /// `tokens`: prompt tokens to prefill.
    pub(super) fn new(worker: Arc<Worker>, lease: Lease, tokens: u64, on_trial: bool) -> Self {
        let compared = worker.tally.as_ref().map(|_| (Instant::now(), tokens));
        Self {
            worker,
            lease: Some(lease),
            on_trial,
            settled: false,
            compared,
        }
    }

    /// For a request that no policy placed, without a prompt.
    pub(crate) fn aside(worker: &Arc<Worker>) -> Self {
        let lease = worker.load.lease(0);
        Self::new(Arc::clone(worker), lease, 0, false)
    }

    /// The worker has begun to answer.
    pub(crate) fn first_byte(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.first_byte();
        }
        if let (Some(tally), Some((since, tokens))) = (&self.worker.tally, self.compared.take()) {
            tally.first_byte(since.elapsed(), tokens);
        }
    }

    /// The try has ended; only the first call counts.
    pub(crate) fn settle(&mut self, outcome: Outcome) {
        if self.settled {
            return;
        }
        self.settled = true;
        let worker = &self.worker;
        let mut meaning = outcome.meaning();
        if outcome == Outcome::Lost && !self.on_trial {
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
        if (self.on_trial || meaning.suspect || !tells_nothing)
            && let Some(fleet) = worker.home.get().and_then(Weak::upgrade)
        {
            fleet.learn(worker, meaning, self.on_trial);
        }
    }
}

impl Worker {
    /// A lost connection was its fault.
    pub(crate) fn blame(&self) {
        self.metrics.failures.inc();
        if let Some(tally) = &self.tally {
            tally.ended(true);
        }
        if let Some(fleet) = self.home.get().and_then(Weak::upgrade) {
            let meaning = Meaning {
                suspect: false,
                ..Outcome::Lost.meaning()
            };
            fleet.learn(self, meaning, false);
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
