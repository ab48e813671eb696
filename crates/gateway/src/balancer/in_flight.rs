//! The guard of one attempt at a worker: its share of the load, and what its end says.

use std::sync::Arc;

use routing::prefix::{CacheReport, Comparison, Correction, Prediction};
use routing::{BreakerSignal, Lease, Outcome, Trial};
use tokio::time::Instant;
use tracing::info;

use super::balancer::Balancer;
use super::feedback;
use crate::fleet::{Role, Worker, trial_answered};

/// What a request costs a worker besides its prompt, in tokens: so that tiny prompts do not
/// inflate the latency per token.
const TOKENS_PER_REQUEST: u64 = 256;

/// A request's share of a worker. Dropped unfinished, the attempt counts as abandoned.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) worker: Arc<Worker>,
    balancer: Arc<Balancer>,
    /// Ends when the guard is dropped.
    lease: Option<Lease>,
    /// It decides about a half-open breaker.
    trial: Option<Trial>,
    /// What routing believes of the worker's cache, until the reply says how much was there.
    prediction: Option<Prediction>,
    finished: bool,
    /// Its routing key's number among those of the worker.
    key: Option<u64>,
    /// When it began.
    since: Instant,
    /// For how many tokens, where workers are compared.
    measured: Option<u64>,
}

/// What a request's prompt takes of a worker.
#[derive(Debug)]
pub(super) struct PromptLoad {
    /// Tokens of the whole prompt.
    pub(super) tokens: u64,
    pub(super) lease: Lease,
}

/// What the first byte of a response means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstByte {
    /// The prompt is prefilled: a stream begins, at this moment.
    OfStream(Instant),
    /// The whole response has been made.
    OfWhole,
}

impl InFlight {
    pub(super) fn new(
        balancer: &Arc<Balancer>,
        worker: &Arc<Worker>,
        prompt: PromptLoad,
        trial: Option<Trial>,
    ) -> Self {
        // A decode worker's first byte is late when its partner is.
        let compared = worker.outlier_stats.as_ref();
        let compared = compared.filter(|_| worker.role() != Role::Decode);
        Self {
            worker: Arc::clone(worker),
            balancer: Arc::clone(balancer),
            lease: Some(prompt.lease),
            trial,
            prediction: None,
            finished: false,
            key: None,
            since: Instant::now(),
            measured: compared.map(|_| prompt.tokens),
        }
    }

    /// The same of a request with a routing key.
    pub(super) fn with_key(mut self, key: Option<&str>) -> Self {
        let key = key.filter(|key| !key.is_empty());
        self.key = key.map(|key| self.worker.active_keys.enter(key));
        self
    }

    /// The same of a request whose reply may say what the worker had cached.
    pub(super) fn with_prediction(mut self, prediction: Option<Prediction>) -> Self {
        self.prediction = prediction;
        self
    }

    /// For a request without a prompt that no policy placed.
    pub(crate) fn unrouted(balancer: &Arc<Balancer>, worker: &Arc<Worker>) -> Self {
        let lease = worker.load.lease(0);
        Self::new(balancer, worker, PromptLoad { tokens: 0, lease }, None)
    }

    /// The worker has begun to respond.
    pub(crate) fn first_byte(&mut self, first: FirstByte) {
        let worker = &self.worker;
        match (&mut self.lease, first) {
            (None, _) => {}
            (Some(lease), FirstByte::OfWhole) => lease.first_byte(),
            // A decode worker's first byte is late when its partner is.
            (Some(lease), _) if worker.role() == Role::Decode => lease.first_byte(),
            (Some(lease), FirstByte::OfStream(now)) => {
                let waited = now - self.since;
                lease.first_token(waited);
                if let (Some(stats), Some(tokens)) = (&worker.outlier_stats, self.measured) {
                    stats.record_first_byte(waited, tokens + TOKENS_PER_REQUEST);
                }
            }
        }
        if let Some(trial) = &mut self.trial {
            trial_answered(&self.balancer.fleet, worker, trial);
        }
    }

    /// The worker has computed the prompt.
    pub(crate) fn prompt_computed(&self) {
        if let Some(prediction) = &self.prediction {
            prediction.first_byte();
        }
    }

    /// The response is complete, and says how much of its prompt was cached.
    pub(crate) fn report_cached(&mut self, report: CacheReport) {
        let worker = &self.worker;
        if let Some(prompt) = report.prompt {
            worker.totals.report(prompt, report.cached);
        }
        let prediction = self.prediction.take();
        let Some(prediction) = prediction.filter(|_| worker.speaks_of_one_cache()) else {
            return;
        };
        let Comparison {
            predicted,
            correction,
        } = prediction.compare(report);
        worker.prediction_error.record(predicted, report.cached);
        worker.metrics().cache_error(predicted, report.cached);
        if let Some(correction) = correction {
            self.correct(&correction);
        }
    }

    /// Forgets what the worker's cache turned out not to have.
    fn correct(&self, correction: &Correction) {
        self.balancer.correct(correction);
        if correction.emptied {
            let worker = &self.worker;
            worker.metrics().cache_emptied();
            info!(worker = %worker.name(), "replies say that a worker's cache was emptied; what it had is forgotten");
        }
    }

    /// The response is complete by now, and has so many tokens.
    pub(crate) fn last_token(&mut self, now: Instant, tokens: u64) {
        if let Some(lease) = &mut self.lease {
            lease.last_token(now - self.since, tokens);
        }
    }

    /// When it began.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Whether its end decides about a half-open breaker.
    pub(crate) fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// The attempt has ended; only the first call counts.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let worker = &self.worker;
        let mut consequence = outcome.consequence();
        let undecided = matches!(outcome, Outcome::NoResponse | Outcome::Disputed(_));
        if undecided && self.trial.is_none() {
            // Whose fault it was shows once another worker has had the request.
            consequence.signal = BreakerSignal::Neutral;
        }
        feedback::count(worker, consequence.signal);
        feedback::count_refusal(worker, outcome);
        let uninformative = match consequence.signal {
            BreakerSignal::Success => worker.is_clean(),
            BreakerSignal::Failure | BreakerSignal::ConnectionFailure => false,
            BreakerSignal::Neutral => true,
        };
        // Nearly every request says nothing new: no lock is taken.
        if self.trial.is_some() || consequence.suspect || consequence.busy || !uninformative {
            feedback::record(&self.balancer.fleet, worker, consequence, self.trial);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.finish(Outcome::Abandoned);
        drop(self.lease.take());
        if let Some(key) = self.key {
            self.worker.active_keys.leave(key);
        }
        self.balancer.request_finished(&self.worker);
    }
}
