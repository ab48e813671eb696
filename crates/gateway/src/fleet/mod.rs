//! Who is there: the workers, what is known of them, and which one gets a request.

mod exchange;
mod health_check;
mod in_flight;
mod model_info;
mod model_policies;
mod placement;
mod pool;
mod registration;
mod registry;
mod slots;
mod spec;
mod status;
mod transitions;
mod worker;
mod worker_queue;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::IntGaugeVec;
use routing::{Outliers, PolicyKind};
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use exchange::{Answer, WorkerBody};
pub(crate) use health_check::{ProbeSettings, Prober};
pub(crate) use in_flight::InFlight;
pub(crate) use model_info::{Labels, ModelInfo, UNKNOWN_MODEL, model};
pub(crate) use model_policies::ModelPolicies;
pub(crate) use placement::{Constraints, SelectError, Selection};
pub(crate) use pool::{Connections, PoolLimits};
pub(crate) use registration::StartupError;
pub(crate) use registry::{RegistrationError, Registry, WorkerFactory};
pub(crate) use slots::Slot;
pub(crate) use spec::{HealthSpec, WorkerConfig, WorkerSpec};
pub(crate) use status::{RegistrationStatus, WorkerState};
pub(crate) use worker::Worker;
pub(crate) use worker_queue::{QueueError, Waiters, WorkerQueue};

use crate::telemetry::Metrics;
use placement::Snapshot;
use slots::Slots;

/// Bytes of text per token, as the prefix index counts.
const BYTES_PER_TOKEN: u64 = 4;

/// All workers, by ascending slot, and the policy that picks among those that are open.
#[derive(Debug)]
pub(crate) struct Fleet {
    workers: ArcSwap<Vec<Arc<Worker>>>,
    /// The open ones; rebuilt when a standing changes, read without a lock.
    snapshot: ArcSwap<Snapshot>,
    rebuilding: Mutex<()>,
    /// Rung when a worker has come, changed its standing, or gone.
    changed: Notify,
    /// Whoever adds or removes a worker holds this.
    slots: Mutex<Slots>,
    /// Whoever says which model a worker serves holds this.
    model_lock: Mutex<()>,
    policies: ModelPolicies,
    rules: FleetRules,
    /// `None` when workers are not compared.
    outliers: Option<Mutex<Outliers>>,
    /// What the age of routing state is counted from.
    started: Instant,
}

/// How workers are treated.
#[derive(Debug, Default)]
pub(crate) struct FleetRules {
    /// Time over which a worker that came back gets its full share again.
    pub(crate) slow_start: Duration,
    /// Workers are probed unless their terms say otherwise: a failed connection takes one out
    /// until a probe has passed.
    pub(crate) suspicion: bool,
    /// How long a worker that leaves may finish what it has.
    pub(crate) drain_timeout: Duration,
    /// The cap on requests per worker, and who waits because of it.
    pub(crate) worker_queue: Option<Arc<WorkerQueue>>,
    /// Largest share of outliers that rest at a time, where workers are compared.
    pub(crate) most_outliers: Option<f64>,
}

impl Fleet {
    pub(crate) fn new(
        workers: Vec<Arc<Worker>>,
        policies: ModelPolicies,
        rules: FleetRules,
    ) -> Arc<Self> {
        let outliers = rules.most_outliers.map(Outliers::new).map(Mutex::new);
        let count = workers.len();
        let fleet = Arc::new(Self {
            workers: ArcSwap::from_pointee(workers),
            snapshot: ArcSwap::from_pointee(Snapshot::new(&policies, &[], &[])),
            rebuilding: Mutex::default(),
            changed: Notify::new(),
            slots: Mutex::new(Slots::taken(count)),
            model_lock: Mutex::default(),
            policies,
            rules,
            outliers,
            started: Instant::now(),
        });
        for worker in fleet.workers().iter() {
            // A worker has one fleet.
            let _ = worker.fleet.set(Arc::downgrade(&fleet));
        }
        fleet.rebuild_membership();
        fleet
    }

    /// Every worker, ready or not.
    pub(crate) fn workers(&self) -> Arc<Vec<Arc<Worker>>> {
        self.workers.load_full()
    }

    /// Time as policies count it.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The cap on requests per worker, and who waits because of it.
    pub(crate) fn worker_queue(&self) -> Option<&WorkerQueue> {
        self.rules.worker_queue.as_deref()
    }

    /// Requests that wait for a place at a worker.
    pub(crate) fn waiting(&self) -> usize {
        self.worker_queue().map_or(0, WorkerQueue::waiting)
    }

    /// Frees routing state that nobody needs any more.
    pub(crate) fn sweep_policy(&self) {
        self.policies.sweep(self.now());
    }

    /// The policy of the models that no label decides about.
    pub(crate) fn policy(&self) -> PolicyKind {
        self.policies.kind()
    }

    /// The ready worker of the lowest slot.
    pub(crate) fn first_ready(&self) -> Option<Arc<Worker>> {
        let workers = self.workers.load();
        workers.iter().find(|worker| worker.is_ready()).cloned()
    }

    /// How many workers are ready.
    pub(crate) fn ready_count(&self) -> usize {
        let workers = self.workers.load();
        workers.iter().filter(|worker| worker.is_ready()).count()
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep_connections(&self) {
        for worker in self.workers().iter() {
            worker.connections.sweep();
        }
    }

    /// Sets the gauges that describe the fleet as it is now.
    pub(crate) fn observe(&self, metrics: &Metrics) {
        metrics.sticky_keys(self.policies.keys());
        let (gauges, breakers) = (&metrics.worker, &metrics.resilience);
        gauges.pool_size.reset();
        gauges.requests_active.reset();
        gauges.health.reset();
        for breaker in [
            &breakers.cb_state,
            &breakers.cb_failures,
            &breakers.cb_successes,
        ] {
            breaker.reset();
        }
        let mut active = 0;
        for worker in self.workers().iter() {
            let url = worker.url.as_str();
            let requests = i64::try_from(worker.load.requests()).unwrap_or(i64::MAX);
            active += requests;
            gauges
                .requests_active
                .with_label_values(&[url])
                .add(requests);
            let health = gauges.health.with_label_values(&[url]);
            health.set(health.get().max(worker.is_ready().into()));
            worker.with_state(|state| {
                let Some(breaker) = &state.breaker else {
                    return;
                };
                let set = |gauge: &IntGaugeVec, value| gauge.with_label_values(&[url]).set(value);
                let failures = i64::try_from(breaker.failures()).unwrap_or(i64::MAX);
                set(&breakers.cb_state, breaker.circuit().as_number());
                set(&breakers.cb_failures, failures);
                set(&breakers.cb_successes, breaker.successes().into());
            });
            let identity = worker.model_info.load();
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
mod tests;
