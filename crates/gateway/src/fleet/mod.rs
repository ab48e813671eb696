//! Who is there: the workers, what is known of them, and which one gets a request.

mod call;
mod connections;
mod identity;
mod probe;
mod worker;

use std::sync::Arc;

use arc_swap::ArcSwap;
use routing::{Candidate, Candidates, Lease, Policy, Request};

pub(crate) use call::{Answer, WorkerBody};
pub(crate) use connections::{Connections, PoolLimits};
pub(crate) use identity::{Identity, UNKNOWN_MODEL};
pub(crate) use probe::{ProbeSettings, Prober};
pub(crate) use worker::Worker;

use crate::telemetry::Metrics;

/// All workers, in configuration order, and the policy that picks among the ready ones.
#[derive(Debug)]
pub(crate) struct Fleet {
    workers: Vec<Arc<Worker>>,
    /// The ready ones; rebuilt when a worker's verdict changes, read without a lock.
    ready: ArcSwap<Vec<Candidate>>,
    policy: Box<dyn Policy>,
}

/// A routing decision: the worker, and this request's place at it.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) worker: Arc<Worker>,
    pub(crate) lease: Lease,
}

impl Fleet {
    pub(crate) fn new(workers: Vec<Arc<Worker>>, policy: Box<dyn Policy>) -> Self {
        let fleet = Self {
            workers,
            ready: ArcSwap::default(),
            policy,
        };
        fleet.refresh();
        fleet
    }

    /// Every worker, ready or not.
    pub(crate) fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// Chooses a worker and counts the request there; `None` when no worker is ready.
    pub(crate) fn place(&self, request: &Request<'_>) -> Option<Placed> {
        let ready = self.ready.load();
        let candidate = self.policy.pick(Candidates::new(&ready)?, request);
        let worker = Arc::clone(self.workers.get(candidate.slot)?);
        let lease = worker.load.lease();
        Some(Placed { worker, lease })
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
        let candidate = |(slot, worker): (usize, &Arc<Worker>)| {
            let load = Arc::clone(&worker.load);
            worker.is_ready().then_some(Candidate { slot, load })
        };
        let ready = self
            .workers
            .iter()
            .enumerate()
            .filter_map(candidate)
            .collect();
        self.ready.store(Arc::new(ready));
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
        let mut active = 0;
        for worker in &self.workers {
            let url = worker.url.as_str();
            let requests = i64::try_from(worker.load.requests()).unwrap_or(i64::MAX);
            active += requests;
            gauges
                .requests_active
                .with_label_values(&[url])
                .set(requests);
            gauges
                .health
                .with_label_values(&[url])
                .set(worker.is_ready().into());
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
