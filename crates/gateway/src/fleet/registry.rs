//! The register of workers: who comes at run time, on which terms, and who leaves.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::{Breaker, BreakerRules, Health, Thresholds, Verdict};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{info, warn};
use uuid::Uuid;

use super::model_info::Labels;
use super::registration::PendingRegistration;
use super::slots::Slot;
use super::worker::NewWorker;
use super::{
    Connections, Fleet, HealthSpec, ModelInfo, PoolLimits, UNKNOWN_MODEL, Worker, WorkerQueue,
    WorkerSpec, WorkerState,
};
use crate::config::{Options, WorkerUrl, seconds};
use crate::telemetry::Metrics;

/// What every worker gets when it comes.
#[derive(Debug)]
pub(crate) struct WorkerFactory {
    metrics: Arc<Metrics>,
    limits: Arc<PoolLimits>,
    thresholds: Thresholds,
    breaker: Option<BreakerRules>,
    compared: bool,
    worker_queue: Option<Arc<WorkerQueue>>,
    startup_timeout: Duration,
    /// Clients need a key: so may workers.
    has_key: bool,
}

impl WorkerFactory {
    pub(crate) fn new(
        options: &Options,
        metrics: &Arc<Metrics>,
        limits: PoolLimits,
        worker_queue: Option<Arc<WorkerQueue>>,
    ) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            limits: Arc::new(limits),
            thresholds: Thresholds {
                failure: options.health_failure_threshold,
                success: options.health_success_threshold,
            },
            breaker: options.breaker_rules(),
            compared: options.outlier_ejection,
            worker_queue,
            startup_timeout: seconds(options.worker_startup_timeout_secs),
            has_key: options.api_key.is_some(),
        }
    }

    /// A worker on these terms; `came` is when, for one that comes while others work.
    pub(crate) fn build(
        &self,
        spec: WorkerSpec,
        slot: Slot,
        joined_at: Option<Duration>,
    ) -> Arc<Worker> {
        let url = spec.url.clone();
        let model = spec.model.as_deref().unwrap_or(UNKNOWN_MODEL);
        let health = Health::new(self.thresholds(&spec.health));
        Arc::new(Worker::new(NewWorker {
            slot,
            connections: Connections::new(url.clone(), Arc::clone(&self.limits)),
            metrics: self.metrics.of_worker(url.as_str()),
            model_info: ModelInfo {
                model: model.to_owned(),
                labels: BTreeMap::new(),
                metrics: self.metrics.model(model),
            },
            state: WorkerState::new(health, self.breaker.map(Breaker::new), joined_at),
            compared: self.compared,
            worker_queue: self.worker_queue.clone(),
            spec,
        }))
    }

    fn thresholds(&self, health: &HealthSpec) -> Thresholds {
        let usual = self.thresholds;
        Thresholds {
            failure: health.failure_threshold.unwrap_or(usual.failure),
            success: health.success_threshold.unwrap_or(usual.success),
        }
    }
}

/// Why a worker was not registered, or not changed.
#[derive(Debug, Error)]
pub(crate) enum RegistrationError {
    /// Its URL is, on other terms.
    #[error(
        "Worker {url} already exists with id {id} and other properties; change it by PUT or PATCH /workers/{id}"
    )]
    Exists { url: String, id: Uuid },
    /// It has left.
    #[error("Worker {0} not found")]
    Removed(Uuid),
    /// It is leaving.
    #[error("Worker {url} with id {id} is being removed and cannot be changed")]
    Draining { url: String, id: Uuid },
    /// Nobody would probe it any more.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Who comes, and on which terms everybody works. One change at a time.
#[derive(Debug)]
pub(crate) struct Registry {
    fleet: Arc<Fleet>,
    factory: WorkerFactory,
    /// To those who probe.
    joined: mpsc::Sender<Arc<Worker>>,
    pending: Mutex<PendingWaiters>,
}

/// Workers that are registered only for those who wait for them, and how many do.
type PendingWaiters = BTreeMap<Uuid, usize>;

impl Registry {
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        factory: WorkerFactory,
        joined: mpsc::Sender<Arc<Worker>>,
    ) -> Self {
        Self {
            fleet,
            factory,
            joined,
            pending: Mutex::default(),
        }
    }

    /// Everybody.
    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// How long a worker may take to come up.
    pub(crate) fn startup_timeout(&self) -> Duration {
        self.factory.startup_timeout
    }

    /// Registers a worker for good. `say` makes its terms from the present ones and from what it
    /// told: what is not said stays. Those of a worker that has been up are not changed so.
    pub(crate) async fn add<E: From<RegistrationError>>(
        &self,
        url: &WorkerUrl,
        build_spec: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, E>,
    ) -> Result<Arc<Worker>, E> {
        self.admit(url, build_spec, false).await
    }

    /// The same for somebody who waits for the worker to come up, and does not want it otherwise.
    pub(crate) async fn register_pending<E: From<RegistrationError>>(
        self: &Arc<Self>,
        url: &WorkerUrl,
        build_spec: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, E>,
    ) -> Result<PendingRegistration, E> {
        let worker = self.admit(url, build_spec, true).await?;
        Ok(PendingRegistration::new(Arc::clone(self), worker))
    }

    async fn admit<E: From<RegistrationError>>(
        &self,
        url: &WorkerUrl,
        build_spec: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, E>,
        wait: bool,
    ) -> Result<Arc<Worker>, E> {
        // First of all, so that no worker can be there without a prober.
        let permit = self.joined.reserve().await;
        let permit = permit.map_err(|_| RegistrationError::Stopping)?;
        let mut pending = self.pending();
        if let Some(worker) = self.fleet.find(url.as_str()) {
            let spec = build_spec(&worker.config.load().spec, &worker.model_info.load().labels)?;
            self.factory.metrics.registered("duplicate");
            self.reregister(&worker, spec)?;
            if wait {
                pending.entry(worker.id).and_modify(|waiting| *waiting += 1);
            } else {
                pending.remove(&worker.id);
            }
            return Ok(worker);
        }
        let spec = build_spec(&WorkerSpec::new(url.clone()), &Labels::new())?;
        self.warn_without_key(&spec);
        let now = self.fleet.now();
        let make = |slot| self.factory.build(spec, slot, Some(now));
        let worker = self.fleet.admit(make);
        if wait {
            pending.insert(worker.id, 1);
        }
        drop(pending);
        permit.send(Arc::clone(&worker));
        info!(worker = %url, id = %worker.id, "worker registered");
        Ok(worker)
    }

    fn reregister(&self, worker: &Arc<Worker>, spec: WorkerSpec) -> Result<(), RegistrationError> {
        let same = worker.config.load().spec == spec;
        if matches!(Fleet::verdict(worker), Verdict::Pending | Verdict::Failed) {
            self.warn_without_key(&spec);
            self.apply_spec(worker, spec);
        } else if !same {
            return Err(RegistrationError::Exists {
                url: worker.url.to_string(),
                id: worker.id,
            });
        }
        Ok(())
    }

    /// Changes the terms of a worker: `change` makes them from the present ones and from what
    /// it told, or fails, and then nothing is changed.
    pub(crate) fn update<E: From<RegistrationError>>(
        &self,
        worker: &Arc<Worker>,
        change: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, E>,
    ) -> Result<(), E> {
        let mut pending = self.pending();
        // Whoever removes it waits for this change, or has been here before it.
        if worker.removed.load(Relaxed) {
            return Err(RegistrationError::Removed(worker.id).into());
        }
        if worker.is_draining() {
            let (url, id) = (worker.url.to_string(), worker.id);
            return Err(RegistrationError::Draining { url, id }.into());
        }
        let spec = change(&worker.config.load().spec, &worker.model_info.load().labels)?;
        self.warn_without_key(&spec);
        self.apply_spec(worker, spec);
        pending.remove(&worker.id);
        drop(pending);
        info!(worker = %worker.url, "worker changed by request");
        Ok(())
    }

    fn apply_spec(&self, worker: &Arc<Worker>, spec: WorkerSpec) {
        let thresholds = self.factory.thresholds(&spec.health);
        worker.config.store(Arc::new(spec.into()));
        self.fleet.update_state(worker, |state| {
            state.health.set_thresholds(thresholds);
            state.health.start_over();
        });
        self.fleet.set_model(worker, None, &self.factory.metrics);
        // Its prober looks at the new terms.
        worker.probe_now.notify_one();
    }

    /// A worker leaves: no new requests, and it is gone once those it has are done.
    pub(crate) fn remove(&self, worker: &Arc<Worker>) {
        self.start_removal(worker, &mut self.pending());
    }

    fn start_removal(&self, worker: &Arc<Worker>, pending: &mut PendingWaiters) {
        pending.remove(&worker.id);
        if self.fleet.start_drain(worker) {
            self.factory.metrics.deregistered("removed");
            let (fleet, worker) = (Arc::clone(&self.fleet), Arc::clone(worker));
            // Without a runtime everything is ending.
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(async move { fleet.finish_drain(&worker).await });
            }
        }
    }

    /// A worker is registered for good.
    pub(super) fn confirm(&self, worker: &Worker) {
        self.pending().remove(&worker.id);
    }

    /// One who waited for a worker does so no longer; tells whether it stays nevertheless.
    pub(super) fn release(&self, worker: &Arc<Worker>) -> bool {
        let mut pending = self.pending();
        let Some(waiting) = pending.get_mut(&worker.id) else {
            return true;
        };
        *waiting -= 1;
        let stays = worker.is_ready() || *waiting > 0;
        if worker.is_ready() {
            pending.remove(&worker.id);
        } else if !stays {
            self.start_removal(worker, &mut pending);
        }
        stays
    }

    fn pending(&self) -> MutexGuard<'_, PendingWaiters> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a worker to get ready, no longer than it may take to come up.
    pub(super) async fn wait_ready(&self, worker: &Worker) -> bool {
        self.fleet.wait_ready(worker, self.startup_timeout()).await
    }

    fn warn_without_key(&self, spec: &WorkerSpec) {
        if self.factory.has_key && spec.key.is_none() {
            warn!(worker = %spec.url, "the gateway has an API key, this worker has none");
        }
    }
}

impl Fleet {
    /// The worker at a URL, however it is spelt; of several the one that is not leaving.
    pub(crate) fn find(&self, url: &str) -> Option<Arc<Worker>> {
        let url = WorkerUrl::parse(url).ok()?;
        let workers = self.workers();
        let mut named = workers.iter().filter(|worker| worker.url == url);
        named.find(|worker| !worker.is_draining()).cloned()
    }

    /// Takes a worker in, at the lowest free slot.
    pub(super) fn admit(self: &Arc<Self>, make: impl FnOnce(Slot) -> Arc<Worker>) -> Arc<Worker> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = make(slots.take());
        // A worker has one fleet.
        let _ = worker.fleet.set(Arc::downgrade(self));
        self.workers.rcu(|workers| {
            let at = workers.partition_point(|other| other.slot < worker.slot);
            let mut more = Vec::clone(workers);
            more.insert(at, Arc::clone(&worker));
            more
        });
        drop(slots);
        self.rebuild_membership();
        worker
    }

    /// A worker has left: nothing is kept of it, and its slot is for the next.
    pub(super) fn remove(&self, worker: &Worker) {
        // Whoever names it does so before, or finds it gone.
        let named = self.model_lock.lock();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.workers.rcu(|workers| {
            let stays = workers.iter().filter(|other| other.id != worker.id);
            stays.cloned().collect::<Vec<_>>()
        });
        if let Some(outliers) = &self.outliers {
            let mut outliers = outliers.lock().unwrap_or_else(PoisonError::into_inner);
            outliers.forget(worker.slot);
        }
        slots.give_back(worker.slot());
        let same = |other: &&Arc<Worker>| other.url.as_str() == worker.url.as_str();
        if before.iter().filter(same).count() < 2 {
            worker.metrics.forget();
        }
        // Not before: who comes to the same URL now counts on series of its own.
        drop(slots);
        drop(named);
        self.rebuild_membership();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use routing::{Params, PolicyKind};

    use super::super::{FleetRules, ModelPolicies};
    use super::*;

    const URL: &str = "http://w:1";

    struct Bench {
        fleet: Arc<Fleet>,
        factory: WorkerFactory,
        metrics: Arc<Metrics>,
    }

    impl Bench {
        fn new() -> Self {
            let metrics = Arc::new(Metrics::new(None).unwrap());
            let options = Options::default();
            let policies =
                ModelPolicies::new(PolicyKind::Random, |kind| kind.build(&Params::default()));
            Self {
                fleet: Fleet::new(Vec::new(), policies, FleetRules::default()),
                factory: WorkerFactory::new(&options, &metrics, PoolLimits::new(&options, 1), None),
                metrics,
            }
        }

        fn come(&self) -> Arc<Worker> {
            let spec = WorkerSpec::new(WorkerUrl::parse(URL).unwrap());
            let make = |slot| self.factory.build(spec, slot, None);
            self.fleet.admit(make)
        }

        fn go(&self, worker: &Worker) {
            worker.removed.store(true, Relaxed);
            self.fleet.remove(worker);
        }
    }

    #[test]
    fn who_comes_to_a_url_while_another_goes_there_is_counted() {
        let bench = Bench::new();
        let mut worker = bench.come();
        for _ in 0..5000 {
            let both = Barrier::new(2);
            let next = thread::scope(|threads| {
                threads.spawn(|| {
                    both.wait();
                    bench.go(&worker);
                });
                both.wait();
                bench.come()
            });
            next.metrics.successes.inc();
            let reported = bench.metrics.of_worker(URL).successes.get();
            assert_eq!(reported, next.metrics.successes.get());
            worker = next;
        }
    }

    #[test]
    fn who_is_gone_is_not_named() {
        let bench = Bench::new();
        let worker = bench.come();
        bench.go(&worker);
        let labels = BTreeMap::from([("model_id".to_owned(), "ghost".to_owned())]);
        bench.fleet.set_model(&worker, Some(labels), &bench.metrics);
        assert_eq!(worker.model_info.load().model, UNKNOWN_MODEL);
    }
}
