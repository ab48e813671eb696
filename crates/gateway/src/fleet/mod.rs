//! Who is there: the workers, what is known of them, and which one gets a request.

mod call;
mod connections;
mod identity;
mod probe;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use routing::{Candidate, Candidates, Lease, Policy, Ranked, Request};
use tokio::time::Instant;

pub(crate) use call::{Answer, WorkerBody};
pub(crate) use connections::{Connections, PoolLimits};
pub(crate) use identity::{Identity, UNKNOWN_MODEL};
pub(crate) use probe::{ProbeSettings, Prober};
pub(crate) use worker::Worker;

use crate::telemetry::Metrics;

/// Bytes of text per token, as the prefix index counts.
const BYTES_PER_TOKEN: u64 = 4;

/// All workers, in configuration order, and the policy that picks among the ready ones.
#[derive(Debug)]
pub(crate) struct Fleet {
    workers: Vec<Arc<Worker>>,
    /// The ready ones; rebuilt when a worker's verdict changes, read without a lock.
    ready: ArcSwap<Vec<Candidate>>,
    policy: Box<dyn Policy>,
    policy_name: &'static str,
    /// What the age of routing state is counted from.
    started: Instant,
}

/// A routing decision: the worker, and this request's place at it.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) worker: Arc<Worker>,
    pub(crate) lease: Lease,
    /// The worker's place in configuration order.
    pub(crate) slot: usize,
    /// Prompt tokens believed to be cached there.
    pub(crate) matched_tokens: u64,
    /// Prompt tokens that waited there before.
    pub(crate) queued_before: u64,
    /// Requests in flight there before.
    pub(crate) requests_before: usize,
}

impl Fleet {
    pub(crate) fn new(
        workers: Vec<Arc<Worker>>,
        policy: Box<dyn Policy>,
        policy_name: &'static str,
    ) -> Self {
        let fleet = Self {
            workers,
            ready: ArcSwap::default(),
            policy,
            policy_name,
            started: Instant::now(),
        };
        fleet.introduce();
        fleet
    }

    /// Every worker, ready or not.
    pub(crate) fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// Chooses a worker and counts the request there; `None` when no worker is ready.
    ///
    /// `target`, the client's `X-SMG-Target-Worker`, names a worker by index in
    /// configuration order, URL or id; a worker that is not there or not ready is `None`.
    pub(crate) fn place(&self, request: &Request<'_>, target: Option<&str>) -> Option<Placed> {
        let ready = self.ready.load();
        let aimed = target.map(|target| self.aim(&ready, target));
        let pick = match &aimed {
            Some(aimed) => self
                .policy
                .pick(Candidates::new(aimed.as_slice())?, request),
            None => self.policy.pick(Candidates::new(&ready)?, request),
        };
        let worker = Arc::clone(self.workers.get(pick.candidate.slot)?);
        let uncached = request.prompt.tokens().saturating_sub(pick.matched_tokens);
        let (queued_before, requests_before) =
            (worker.load.queued_tokens(), worker.load.requests());
        let lease = worker.load.lease(uncached);
        let (slot, matched_tokens) = (pick.candidate.slot, pick.matched_tokens);
        Some(Placed {
            worker,
            lease,
            slot,
            matched_tokens,
            queued_before,
            requests_before,
        })
    }

    /// What the policy would weigh, best first; where it has no costs, the ready workers as
    /// they stand, all at cost 0.
    pub(crate) fn rank<T>(
        &self,
        request: &Request<'_>,
        use_ranked: impl FnOnce(&[Ranked<'_>]) -> T,
    ) -> T {
        let ready = self.ready.load();
        let Some(from) = Candidates::new(&ready) else {
            return use_ranked(&[]);
        };
        let mut ranked = self.policy.rank(from, request);
        if ranked.is_empty() {
            let bare = |candidate| Ranked {
                candidate,
                matched_tokens: 0,
                queued_tokens: 0,
                cost: 0.0,
            };
            ranked.extend(from.iter().map(bare));
        }
        use_ranked(&ranked)
    }

    /// Time as policies count it.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Frees routing state that nobody needs any more.
    pub(crate) fn sweep_policy(&self) {
        self.policy.sweep(self.now());
    }

    /// The policy, by the name users write.
    pub(crate) fn policy_name(&self) -> &'static str {
        self.policy_name
    }

    /// The ready worker that a client names, alone or not at all.
    fn aim(&self, ready: &[Candidate], target: &str) -> Vec<Candidate> {
        let index = target.parse().ok();
        let named = |candidate: &&Candidate| {
            index == Some(candidate.slot)
                || *candidate.url == *target.trim_end_matches('/')
                || self
                    .workers
                    .get(candidate.slot)
                    .is_some_and(|worker| worker.is_called(target))
        };
        ready.iter().find(named).cloned().into_iter().collect()
    }

    /// The first ready worker in configuration order.
    pub(crate) fn first_ready(&self) -> Option<&Arc<Worker>> {
        self.workers.iter().find(|worker| worker.is_ready())
    }

    /// How many workers are ready.
    pub(crate) fn ready_count(&self) -> usize {
        self.ready.load().len()
    }

    /// Takes over the workers' present verdicts.
    pub(crate) fn refresh(&self) {
        self.ready
            .store(Arc::new(self.candidates(Worker::is_ready)));
        let ready = self.workers.iter().filter(|worker| worker.is_ready());
        // `None` as soon as one of them does not tell.
        let tokens: Option<u64> = ready
            .map(|worker| worker.identity.load().cache_tokens())
            .sum();
        let told = tokens.filter(|tokens| *tokens > 0);
        self.policy
            .capacity(told.map(|tokens| tokens.saturating_mul(BYTES_PER_TOKEN)));
    }

    /// The worker's cache is empty: what is believed of it goes at once.
    pub(crate) fn forget(&self, worker: &Worker) {
        worker.begin_anew();
        self.introduce();
    }

    /// Tells the policy who is there, ready or not.
    fn introduce(&self) {
        self.policy.members(&self.candidates(|_| true));
        self.refresh();
    }

    fn candidates(&self, wanted: impl Fn(&Worker) -> bool) -> Vec<Candidate> {
        let candidate = |(slot, worker): (usize, &Arc<Worker>)| Candidate {
            slot,
            generation: worker.generation(),
            url: worker.url.as_str().into(),
            load: Arc::clone(&worker.load),
        };
        let workers = self.workers.iter().enumerate();
        workers
            .filter(|(_, worker)| wanted(worker))
            .map(candidate)
            .collect()
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep_connections(&self) {
        for worker in &self.workers {
            worker.connections.sweep();
        }
    }

    /// Sets the gauges that describe the fleet as it is now.
    pub(crate) fn observe(&self, metrics: &Metrics) {
        let gauges = &metrics.worker;
        gauges.pool_size.reset();
        gauges.requests_active.reset();
        gauges.health.reset();
        let mut active = 0;
        for worker in &self.workers {
            let url = worker.url.as_str();
            let requests = i64::try_from(worker.load.requests()).unwrap_or(i64::MAX);
            active += requests;
            gauges
                .requests_active
                .with_label_values(&[url])
                .add(requests);
            let health = gauges.health.with_label_values(&[url]);
            health.set(health.get().max(worker.is_ready().into()));
            let identity = worker.identity.load();
            gauges
                .pool_size
                .with_label_values(&["regular", "http", &identity.model])
                .inc();
        }
        gauges
            .connections_active
            .with_label_values(&["regular", "http"])
            .set(active);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use routing::{Pick, Thresholds};

    use super::*;
    use crate::Options;
    use crate::config::WorkerUrl;

    /// The generations of all members, every time they were told.
    #[derive(Clone, Debug, Default)]
    struct Heard(Arc<Mutex<Vec<Vec<u32>>>>);

    impl Policy for Heard {
        fn pick<'a>(&self, from: Candidates<'a>, _request: &Request<'_>) -> Pick<'a> {
            from.wrapping(0).into()
        }

        fn members(&self, all: &[Candidate]) {
            let generations = all.iter().map(|candidate| candidate.generation).collect();
            self.0.lock().unwrap().push(generations);
        }
    }

    fn worker(metrics: &Metrics) -> Arc<Worker> {
        let url = WorkerUrl::parse("http://w:1").unwrap();
        let limits = Arc::new(PoolLimits::new(&Options::default(), 1));
        let identity = Identity {
            model: UNKNOWN_MODEL.to_owned(),
            labels: std::collections::BTreeMap::new(),
            metrics: metrics.model(UNKNOWN_MODEL, "heard"),
        };
        let connections = Connections::new(url.clone(), limits);
        let thresholds = Thresholds {
            failure: 1,
            success: 1,
        };
        Arc::new(Worker::new(url, None, connections, identity, thresholds))
    }

    #[test]
    fn the_policy_is_told_of_every_worker_at_the_start_and_of_every_new_life() {
        let (heard, metrics) = (Heard::default(), Metrics::new(None).unwrap());
        let workers = vec![worker(&metrics), worker(&metrics)];
        let fleet = Fleet::new(workers, Box::new(heard.clone()), "heard");
        assert_eq!(*heard.0.lock().unwrap(), [[0, 0]]);
        fleet.forget(&fleet.workers()[1]);
        assert_eq!(*heard.0.lock().unwrap(), [[0, 0], [0, 1]]);
    }
}
