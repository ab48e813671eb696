//! One try at a worker: its place in the load, and what its end tells about the worker.

use std::sync::{Arc, Weak};

use routing::{BreakerSignal, Consequence, Lease, Outcome, Trial};
use tokio::time::Instant;

use super::Worker;

/// What a request costs a worker besides its prompt, in tokens: so that a prompt of three
/// does not make it look slow.
const TOKENS_PER_REQUEST: u64 = 256;

/// A request's place at a worker. Dropped unsettled, the try counts as abandoned.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) worker: Arc<Worker>,
    /// Given back first of all when the ticket is dropped.
    lease: Option<Lease>,
    /// It decides about a half-open breaker.
    trial: Option<Trial>,
    finished: bool,
    /// When it was taken and for how many tokens, where workers are compared.
    measured: Option<(Instant, u64)>,
}

impl InFlight {
    /// `tokens`: those of the whole prompt.
    pub(super) fn new(
        worker: Arc<Worker>,
        lease: Lease,
        tokens: u64,
        trial: Option<Trial>,
    ) -> Self {
        let measured = worker
            .outlier_stats
            .as_ref()
            .map(|_| (Instant::now(), tokens));
        Self {
            worker,
            lease: Some(lease),
            trial,
            finished: false,
            measured,
        }
    }

    /// For a request that no policy placed, without a prompt.
    pub(crate) fn unrouted(worker: &Arc<Worker>) -> Self {
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
        if let (Some(stats), Some((since, tokens))) = (&worker.outlier_stats, self.measured.take())
            && is_stream
        {
            stats.first_byte(since.elapsed(), tokens + TOKENS_PER_REQUEST);
        }
        if let Some(trial) = &mut self.trial
            && let Some(fleet) = worker.fleet.get().and_then(Weak::upgrade)
        {
            fleet.trial_answered(worker, trial);
        }
    }

    /// Whether its end says something by itself, whatever others make of the request.
    pub(crate) fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// The try has ended; only the first call counts.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        if self.finished {
            return;
        }
        self.finished = true;
        let worker = &self.worker;
        let mut consequence = outcome.consequence();
        if outcome == Outcome::NoResponse && self.trial.is_none() {
            // Whose fault it was shows once somebody else has been asked.
            consequence.signal = BreakerSignal::Neutral;
        }
        match consequence.signal {
            BreakerSignal::Success => worker.metrics.successes.inc(),
            BreakerSignal::Failure => worker.metrics.failures.inc(),
            BreakerSignal::Neutral => {}
        }
        if let Some(stats) = worker
            .outlier_stats
            .as_ref()
            .filter(|_| consequence.signal != BreakerSignal::Neutral)
        {
            stats.ended(consequence.signal == BreakerSignal::Failure);
        }
        let uninformative = match consequence.signal {
            BreakerSignal::Success => worker.is_clean(),
            BreakerSignal::Failure => false,
            BreakerSignal::Neutral => true,
        };
        // The way of nearly every request: nothing to learn, no lock.
        if (self.trial.is_some() || consequence.suspect || consequence.busy || !uninformative)
            && let Some(fleet) = worker.fleet.get().and_then(Weak::upgrade)
        {
            fleet.record_outcome(worker, consequence, self.trial);
        }
    }
}

impl Worker {
    /// A lost connection was its fault.
    pub(crate) fn record_lost_connection(self: &Arc<Self>) {
        self.metrics.failures.inc();
        if let Some(stats) = &self.outlier_stats {
            stats.ended(true);
        }
        if let Some(fleet) = self.fleet.get().and_then(Weak::upgrade) {
            let consequence = Consequence {
                suspect: false,
                ..Outcome::NoResponse.consequence()
            };
            fleet.record_outcome(self, consequence, None);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.finish(Outcome::Abandoned);
        drop(self.lease.take());
        self.worker.request_finished();
    }
}
