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

use super::claim::Claim;
use super::identity::Labels;
use super::slots::Slot;
use super::worker::NewWorker;
use super::{
    Connections, Fleet, HealthSpec, Identity, PoolLimits, Room, Standing, UNKNOWN_MODEL, Worker,
    WorkerSpec,
};
use crate::config::{Options, WorkerUrl, seconds};
use crate::telemetry::Metrics;

/// What every worker gets when it comes.
#[derive(Debug)]
pub(crate) struct Outfit {
    metrics: Arc<Metrics>,
    limits: Arc<PoolLimits>,
    thresholds: Thresholds,
    breaker: Option<BreakerRules>,
    compared: bool,
    room: Option<Arc<Room>>,
    startup_timeout: Duration,
    /// Clients need a key: so may workers.
    has_key: bool,
}

impl Outfit {
    pub(crate) fn new(
        options: &Options,
        metrics: &Arc<Metrics>,
        limits: PoolLimits,
        room: Option<Arc<Room>>,
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
            room,
            startup_timeout: seconds(options.worker_startup_timeout_secs),
            has_key: options.api_key.is_some(),
        }
    }

    /// A worker on these terms; `came` is when, for one that comes while others work.
    pub(crate) fn worker(
        &self,
        spec: WorkerSpec,
        slot: Slot,
        came: Option<Duration>,
    ) -> Arc<Worker> {
        let url = spec.url.clone();
        let model = spec.model.as_deref().unwrap_or(UNKNOWN_MODEL);
        let health = Health::new(self.thresholds(&spec.health));
        Arc::new(Worker::new(NewWorker {
            slot,
            connections: Connections::new(url.clone(), Arc::clone(&self.limits)),
            metrics: self.metrics.of_worker(url.as_str()),
            identity: Identity {
                model: model.to_owned(),
                labels: BTreeMap::new(),
                metrics: self.metrics.model(model),
            },
            standing: Standing::new(health, self.breaker.map(Breaker::new), came),
            compared: self.compared,
            room: self.room.clone(),
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
pub(crate) enum NotRegistered {
    /// Its URL is, on other terms.
    #[error(
        "Worker {url} already exists with id {id} and other properties; change it by PUT or PATCH /workers/{id}"
    )]
    Exists { url: String, id: Uuid },
    /// It has left.
    #[error("Worker {0} not found")]
    Gone(Uuid),
    /// It is leaving.
    #[error("Worker {url} with id {id} is being removed and cannot be changed")]
    Leaving { url: String, id: Uuid },
    /// Nobody would probe it any more.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Who comes, and on which terms everybody works. One change at a time.
#[derive(Debug)]
pub(crate) struct Register {
    fleet: Arc<Fleet>,
    outfit: Outfit,
    /// To those who probe.
    arrivals: mpsc::Sender<Arc<Worker>>,
    changing: Mutex<Claims>,
}

/// Workers that are registered only for those who wait for them, and how many do.
type Claims = BTreeMap<Uuid, usize>;

impl Register {
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        outfit: Outfit,
        arrivals: mpsc::Sender<Arc<Worker>>,
    ) -> Self {
        Self {
            fleet,
            outfit,
            arrivals,
            changing: Mutex::default(),
        }
    }

    /// Everybody.
    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// How long a worker may take to come up.
    pub(crate) fn startup_timeout(&self) -> Duration {
        self.outfit.startup_timeout
    }

    /// Registers a worker for good. `say` makes its terms from the present ones and from what it
    /// told: what is not said stays. Those of a worker that has been up are not changed so.
    pub(crate) async fn add<E: From<NotRegistered>>(
        &self,
        url: &WorkerUrl,
        say: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, E>,
    ) -> Result<Arc<Worker>, E> {
        self.admit(url, say, false).await
    }

    /// The same for somebody who waits for the worker to come up, and does not want it otherwise.
    pub(crate) async fn claim<E: From<NotRegistered>>(
        self: &Arc<Self>,
        url: &WorkerUrl,
        say: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, E>,
    ) -> Result<Claim, E> {
        let worker = self.admit(url, say, true).await?;
        Ok(Claim::new(Arc::clone(self), worker))
    }

    async fn admit<E: From<NotRegistered>>(
        &self,
        url: &WorkerUrl,
        say: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, E>,
        waits: bool,
    ) -> Result<Arc<Worker>, E> {
        // First of all, so that no worker can be there without a prober.
        let arrival = self.arrivals.reserve().await;
        let arrival = arrival.map_err(|_| NotRegistered::Stopping)?;
        let mut claims = self.claims();
        if let Some(worker) = self.fleet.find(url.as_str()) {
            let spec = say(&worker.terms.load().spec, &worker.identity.load().labels)?;
            self.outfit.metrics.registered("duplicate");
            self.again(&worker, spec)?;
            if waits {
                claims.entry(worker.id).and_modify(|waiting| *waiting += 1);
            } else {
                claims.remove(&worker.id);
            }
            return Ok(worker);
        }
        let spec = say(&WorkerSpec::of(url.clone()), &Labels::new())?;
        self.warn_of_no_key(&spec);
        let now = self.fleet.now();
        let make = |slot| self.outfit.worker(spec, slot, Some(now));
        let worker = self.fleet.admit(make);
        if waits {
            claims.insert(worker.id, 1);
        }
        drop(claims);
        arrival.send(Arc::clone(&worker));
        info!(worker = %url, id = %worker.id, "worker registered");
        Ok(worker)
    }

    fn again(&self, worker: &Arc<Worker>, spec: WorkerSpec) -> Result<(), NotRegistered> {
        let same = worker.terms.load().spec == spec;
        if matches!(Fleet::verdict(worker), Verdict::Pending | Verdict::Failed) {
            self.warn_of_no_key(&spec);
            self.agree(worker, spec);
        } else if !same {
            return Err(NotRegistered::Exists {
                url: worker.url.to_string(),
                id: worker.id,
            });
        }
        Ok(())
    }

    /// Changes the terms of a worker: `change` makes them from the present ones and from what
    /// it told, or fails, and then nothing is changed.
    pub(crate) fn change<E: From<NotRegistered>>(
        &self,
        worker: &Arc<Worker>,
        change: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, E>,
    ) -> Result<(), E> {
        let mut claims = self.claims();
        // Whoever removes it waits for this change, or has been here before it.
        if worker.gone.load(Relaxed) {
            return Err(NotRegistered::Gone(worker.id).into());
        }
        if worker.is_leaving() {
            let (url, id) = (worker.url.to_string(), worker.id);
            return Err(NotRegistered::Leaving { url, id }.into());
        }
        let spec = change(&worker.terms.load().spec, &worker.identity.load().labels)?;
        self.warn_of_no_key(&spec);
        self.agree(worker, spec);
        claims.remove(&worker.id);
        drop(claims);
        info!(worker = %worker.url, "worker changed by request");
        Ok(())
    }

    fn agree(&self, worker: &Arc<Worker>, spec: WorkerSpec) {
        let thresholds = self.outfit.thresholds(&spec.health);
        worker.terms.store(Arc::new(spec.into()));
        self.fleet.change(worker, |standing| {
            standing.health.set_thresholds(thresholds);
            standing.health.start_over();
        });
        self.fleet.name(worker, None, &self.outfit.metrics);
        // Its prober looks at the new terms.
        worker.wake.notify_one();
    }

    /// A worker leaves: no new requests, and it is gone once those it has are done.
    pub(crate) fn remove(&self, worker: &Arc<Worker>) {
        self.see_off(worker, &mut self.claims());
    }

    fn see_off(&self, worker: &Arc<Worker>, claims: &mut Claims) {
        claims.remove(&worker.id);
        if self.fleet.begin_leaving(worker) {
            self.outfit.metrics.deregistered("removed");
            let (fleet, worker) = (Arc::clone(&self.fleet), Arc::clone(worker));
            // Without a runtime everything is ending.
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(async move { fleet.finish_leaving(&worker).await });
            }
        }
    }

    /// A worker is registered for good.
    pub(super) fn keep(&self, worker: &Worker) {
        self.claims().remove(&worker.id);
    }

    /// One who waited for a worker does so no longer; tells whether it stays nevertheless.
    pub(super) fn let_go(&self, worker: &Arc<Worker>) -> bool {
        let mut claims = self.claims();
        let Some(waiting) = claims.get_mut(&worker.id) else {
            return true;
        };
        *waiting -= 1;
        let stays = worker.is_ready() || *waiting > 0;
        if worker.is_ready() {
            claims.remove(&worker.id);
        } else if !stays {
            self.see_off(worker, &mut claims);
        }
        stays
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a worker to get ready, no longer than it may take to come up.
    pub(super) async fn until_ready(&self, worker: &Worker) -> bool {
        self.fleet.until_ready(worker, self.startup_timeout()).await
    }

    fn warn_of_no_key(&self, spec: &WorkerSpec) {
        if self.outfit.has_key && spec.key.is_none() {
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
        named.find(|worker| !worker.is_leaving()).cloned()
    }

    /// Takes a worker in, at the lowest free slot.
    pub(super) fn admit(self: &Arc<Self>, make: impl FnOnce(Slot) -> Arc<Worker>) -> Arc<Worker> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = make(slots.take());
        // A worker has one fleet.
        let _ = worker.home.set(Arc::downgrade(self));
        self.workers.rcu(|workers| {
            let at = workers.partition_point(|other| other.slot < worker.slot);
            let mut more = Vec::clone(workers);
            more.insert(at, Arc::clone(&worker));
            more
        });
        drop(slots);
        self.introduce();
        worker
    }

    /// A worker has left: nothing is kept of it, and its slot is for the next.
    pub(super) fn dismiss(&self, worker: &Worker) {
        // Whoever names it does so before, or finds it gone.
        let named = self.naming.lock();
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
        self.introduce();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use routing::{Params, PolicyKind};

    use super::super::{FleetRules, Policies};
    use super::*;

    const URL: &str = "http://w:1";

    struct Bench {
        fleet: Arc<Fleet>,
        outfit: Outfit,
        metrics: Arc<Metrics>,
    }

    impl Bench {
        fn new() -> Self {
            let metrics = Arc::new(Metrics::new(None).unwrap());
            let options = Options::default();
            let policies = Policies::new(PolicyKind::Random, |kind| kind.build(&Params::default()));
            Self {
                fleet: Fleet::new(Vec::new(), policies, FleetRules::default()),
                outfit: Outfit::new(&options, &metrics, PoolLimits::new(&options, 1), None),
                metrics,
            }
        }

        fn come(&self) -> Arc<Worker> {
            let spec = WorkerSpec::of(WorkerUrl::parse(URL).unwrap());
            let make = |slot| self.outfit.worker(spec, slot, None);
            self.fleet.admit(make)
        }

        fn go(&self, worker: &Worker) {
            worker.gone.store(true, Relaxed);
            self.fleet.dismiss(worker);
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
            let told = bench.metrics.of_worker(URL).successes.get();
            assert_eq!(told, next.metrics.successes.get());
            worker = next;
        }
    }

    #[test]
    fn who_is_gone_is_not_named() {
        let bench = Bench::new();
        let worker = bench.come();
        bench.go(&worker);
        let labels = BTreeMap::from([("model_id".to_owned(), "ghost".to_owned())]);
        bench.fleet.name(&worker, Some(labels), &bench.metrics);
        assert_eq!(worker.identity.load().model, UNKNOWN_MODEL);
    }
}
