//! The one way in for workers: configured, or registered by request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::Verdict;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::model_info::Labels;
use super::source::Source;
use super::spec::WorkerSpec;
use super::worker::Worker;
use super::worker_factory::WorkerFactory;
use super::{drain, transitions};
use crate::config::WorkerUrl;
use crate::telemetry::Metrics;

/// Why a worker was not registered, or not changed.
#[derive(Debug, Error)]
pub(crate) enum RegistrationError {
    /// Its description is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Its URL is registered with other properties.
    #[error(
        "Worker {url} already exists with id {id} and other properties; change it by PUT or PATCH /workers/{id}"
    )]
    Exists { url: String, id: Uuid },
    /// It has been removed.
    #[error("Worker {0} not found")]
    Removed(Uuid),
    /// It is being removed.
    #[error("Worker {url} with id {id} is being removed and cannot be changed")]
    Draining { url: String, id: Uuid },
    /// No prober would start for it.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Adds, changes and removes workers, one change at a time.
#[derive(Debug)]
pub(crate) struct Registry {
    fleet: Arc<Fleet>,
    factory: WorkerFactory,
    /// To the health checks; no more than there are workers.
    joined: mpsc::UnboundedSender<Arc<Endpoint>>,
    entries: Mutex<Entries>,
}

/// What is known of registrations besides the workers themselves.
#[derive(Debug, Default)]
struct Entries {
    sources: BTreeMap<Uuid, Source>,
    /// Workers that are registered only for clients that wait for them, and how many do.
    waiters: BTreeMap<Uuid, usize>,
}

impl Entries {
    fn source_of(&self, worker: &Worker) -> Source {
        let source = self.sources.get(&worker.id).copied();
        source.unwrap_or(Source::API)
    }
}

/// How long a registration is to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RegistrationLifetime {
    Always,
    /// While a client waits for it.
    WhileWaiting,
}

impl Registry {
    /// A registry for `fleet`; endpoints that need health checks go to `joined`.
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        factory: WorkerFactory,
        joined: mpsc::UnboundedSender<Arc<Endpoint>>,
    ) -> Self {
        Self {
            fleet,
            factory,
            joined,
            entries: Mutex::default(),
        }
    }

    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.factory.metrics
    }

    /// How long a worker may take to become ready.
    pub(crate) fn startup_timeout(&self) -> Duration {
        self.factory.startup_timeout
    }

    /// Makes the workers of a source those of `list`: adds what is missing, in order, and
    /// removes what is no longer in it.
    ///
    /// # Errors
    /// When no health check would start for a new worker.
    pub(crate) fn reconcile(
        &self,
        source: Source,
        list: &[WorkerSpec],
    ) -> Result<(), RegistrationError> {
        if self.joined.is_closed() {
            return Err(RegistrationError::Stopping);
        }
        let begun = Instant::now();
        let mut entries = self.entries();
        let workers = self.fleet.workers();
        let present = workers.iter().filter(|worker| !worker.is_draining());
        let (mut own, others): (Vec<_>, Vec<_>) =
            present.partition(|worker| entries.sources.get(&worker.id) == Some(&source));
        for spec in list {
            let at = |worker: &&Arc<Worker>| *worker.url() == spec.url;
            if let Some(kept) = own.iter().position(&at) {
                own.swap_remove(kept);
            } else if !others.iter().any(at) {
                self.join(spec.clone(), source, &mut entries)?;
            }
        }
        for worker in own {
            self.start_removal(worker, &mut entries);
        }
        let metrics = &self.factory.metrics;
        metrics.synced(source.label(), list.len(), begun.elapsed());
        Ok(())
    }

    /// Registers a worker for good. `build_spec` makes its spec from the present one and from
    /// what the worker reports: omitted fields keep their value. A worker that has been ready
    /// is not changed so.
    ///
    /// # Errors
    /// That of `build_spec`, or why the registry refuses.
    pub(crate) fn add(
        &self,
        url: &WorkerUrl,
        build_spec: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, RegistrationError>,
    ) -> Result<Arc<Worker>, RegistrationError> {
        self.register(url, build_spec, RegistrationLifetime::Always)
    }

    /// Registers a worker for a client that waits for it. The client confirms or releases it.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(super) fn add_while_waiting(
        &self,
        url: &WorkerUrl,
        build_spec: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, RegistrationError>,
    ) -> Result<Arc<Worker>, RegistrationError> {
        self.register(url, build_spec, RegistrationLifetime::WhileWaiting)
    }

    fn register(
        &self,
        url: &WorkerUrl,
        build_spec: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, RegistrationError>,
        lifetime: RegistrationLifetime,
    ) -> Result<Arc<Worker>, RegistrationError> {
        if self.joined.is_closed() {
            return Err(RegistrationError::Stopping);
        }
        let mut entries = self.entries();
        if let Some(worker) = self.fleet.find(url.as_str()) {
            let endpoint = &worker.endpoint;
            let spec = build_spec(
                &endpoint.config.load().spec,
                &endpoint.model_info.load().report.labels,
            )?;
            check_tls_name(endpoint, &spec)?;
            let source = Source::API.label();
            self.factory.metrics.registered(source, "duplicate");
            self.reregister(&worker, spec)?;
            if lifetime == RegistrationLifetime::WhileWaiting {
                let waiters = entries.waiters.entry(worker.id);
                waiters.and_modify(|waiting| *waiting += 1);
            } else {
                entries.waiters.remove(&worker.id);
            }
            return Ok(worker);
        }
        let spec = build_spec(&WorkerSpec::new(url.clone()), &Labels::new())?;
        let worker = self.join(spec, Source::API, &mut entries)?;
        if lifetime == RegistrationLifetime::WhileWaiting {
            entries.waiters.insert(worker.id, 1);
        }
        drop(entries);
        info!(worker = %url, id = %worker.id, "worker registered");
        Ok(worker)
    }

    /// Adds a worker to the fleet, and starts its health checks.
    fn join(
        &self,
        spec: WorkerSpec,
        source: Source,
        entries: &mut Entries,
    ) -> Result<Arc<Worker>, RegistrationError> {
        let joined_at = (source != Source::CONFIGURED).then(|| self.fleet.now());
        if joined_at.is_some() {
            self.factory.warn_without_key(&spec);
        }
        let build = |slot| self.factory.build(spec, slot, joined_at);
        let worker = self.fleet.add(build);
        entries.sources.insert(worker.id, source);
        let joined = self.joined.send(Arc::clone(&worker.endpoint));
        joined.map_err(|_| RegistrationError::Stopping)?;
        Ok(worker)
    }

    fn reregister(&self, worker: &Arc<Worker>, spec: WorkerSpec) -> Result<(), RegistrationError> {
        let endpoint = &worker.endpoint;
        let same = endpoint.config.load().spec == spec;
        if matches!(endpoint.verdict(), Verdict::Pending | Verdict::Failed) {
            self.factory.warn_without_key(&spec);
            self.apply_spec(endpoint, spec);
        } else if !same {
            return Err(RegistrationError::Exists {
                url: worker.url().to_string(),
                id: worker.id,
            });
        }
        Ok(())
    }

    /// Changes a worker's spec: `change` makes it from the present one and from what the worker
    /// reports, or fails, and then nothing is changed.
    ///
    /// # Errors
    /// That of `change`, or why the registry refuses.
    pub(crate) fn update(
        &self,
        worker: &Arc<Worker>,
        change: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, RegistrationError>,
    ) -> Result<(), RegistrationError> {
        let mut entries = self.entries();
        let endpoint = &worker.endpoint;
        // A removal waits for this change, or has come before it.
        if endpoint.is_removed() {
            return Err(RegistrationError::Removed(worker.id));
        }
        if worker.is_draining() {
            let (url, id) = (worker.url().to_string(), worker.id);
            return Err(RegistrationError::Draining { url, id });
        }
        let spec = change(
            &endpoint.config.load().spec,
            &endpoint.model_info.load().report.labels,
        )?;
        check_tls_name(endpoint, &spec)?;
        self.factory.warn_without_key(&spec);
        self.apply_spec(endpoint, spec);
        entries.waiters.remove(&worker.id);
        drop(entries);
        info!(worker = %worker.url(), "worker changed by request");
        Ok(())
    }

    fn apply_spec(&self, endpoint: &Arc<Endpoint>, spec: WorkerSpec) {
        let thresholds = self.factory.thresholds(&spec.health);
        endpoint.config.store(Arc::new(spec.into()));
        transitions::restart_health(&self.fleet, endpoint, thresholds);
        transitions::set_model(&self.fleet, endpoint, None, &self.factory.metrics);
        // Its prober reads the new settings.
        endpoint.probe_now.notify_one();
    }

    /// Removes a worker: no new requests, and it is gone once those it has are done.
    pub(crate) fn remove(&self, worker: &Arc<Worker>) {
        self.start_removal(worker, &mut self.entries());
    }

    /// An endpoint has reported how many data-parallel ranks it has: each is a worker of its own,
    /// where requests are routed to ranks.
    pub(super) fn follow_ranks(&self, endpoint: &Arc<Endpoint>) {
        let entries = self.entries();
        let ranks = self.factory.ranks_of(endpoint);
        let mut workers = self.fleet.workers_of(endpoint);
        workers.retain(|worker| !worker.is_draining());
        let first = workers.iter().find(|worker| worker.is_first_rank());
        let (Some(first), false) = (first, ranks == endpoint.ranks()) else {
            return;
        };
        let known = endpoint.ranks();
        endpoint.set_ranks(ranks);
        first.set_rank_metrics(|name| self.factory.metrics.of_worker(name));
        let joined_at = first.joined_at_runtime().then(|| self.fleet.now());
        for rank in known..ranks {
            let build = |slot| self.factory.build_rank(endpoint, slot, rank, joined_at);
            self.fleet.add(build);
        }
        let source = entries.source_of(first);
        for surplus in workers.iter().filter(|worker| !worker.is_below(ranks)) {
            self.drain(surplus, source);
        }
        info!(worker = %endpoint.url, ranks, "worker has data-parallel ranks");
        self.fleet.membership_changed();
    }

    /// Removes a worker, with all ranks of its endpoint.
    fn start_removal(&self, worker: &Arc<Worker>, entries: &mut Entries) {
        let source = entries.source_of(worker);
        for worker in self.fleet.workers_of(&worker.endpoint) {
            entries.waiters.remove(&worker.id);
            entries.sources.remove(&worker.id);
            self.drain(&worker, source);
        }
    }

    /// Where a worker comes from.
    pub(super) fn source_of(&self, worker: &Worker) -> Source {
        self.entries().source_of(worker)
    }

    fn drain(&self, worker: &Arc<Worker>, source: Source) {
        if drain::start_drain(&self.fleet, worker) {
            let metrics = &self.factory.metrics;
            metrics.deregistered(source.label(), "removed");
            let (fleet, worker) = (Arc::clone(&self.fleet), Arc::clone(worker));
            // Without a runtime everything is ending.
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(async move { drain::finish_drain(&fleet, &worker).await });
            } else {
                warn!("no runtime to finish the removal of a worker");
            }
        }
    }

    /// A client that waited for a worker keeps it registered.
    pub(super) fn confirm(&self, worker: &Worker) {
        self.entries().waiters.remove(&worker.id);
    }

    /// A client waits for a worker no longer; returns whether the worker stays nevertheless.
    pub(super) fn release(&self, worker: &Arc<Worker>) -> bool {
        let mut entries = self.entries();
        let Some(waiting) = entries.waiters.get_mut(&worker.id) else {
            return true;
        };
        *waiting -= 1;
        let stays = worker.is_ready() || *waiting > 0;
        if worker.is_ready() {
            entries.waiters.remove(&worker.id);
        } else if !stays {
            self.start_removal(worker, &mut entries);
        }
        stays
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections to an endpoint are made with one name for as long as it is registered.
fn check_tls_name(endpoint: &Endpoint, spec: &WorkerSpec) -> Result<(), RegistrationError> {
    if endpoint.url.tls_name() == spec.url.tls_name() {
        return Ok(());
    }
    let why = "tls_server_name: cannot change; remove the worker and add it again";
    Err(RegistrationError::Invalid(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::super::model_info::{Report, UNKNOWN_MODEL};
    use super::*;
    use crate::config::{ConnectionSection, FleetSection, HealthSection, Options};
    use crate::upstream::ConnectionLimits;

    const URL: &str = "http://w:1";

    struct Bench {
        fleet: Arc<Fleet>,
        factory: WorkerFactory,
        metrics: Arc<Metrics>,
    }

    fn spec(url: &str) -> WorkerSpec {
        WorkerSpec::new(WorkerUrl::parse(url).unwrap())
    }

    impl Bench {
        fn new() -> Self {
            let metrics = Arc::new(Metrics::new(None).unwrap());
            let options = &Options::default();
            let limits = ConnectionLimits::new(&ConnectionSection::from(options), 1);
            let section = FleetSection::from(options);
            let health = HealthSection::from(options);
            Self {
                factory: WorkerFactory::new(&section, &health, limits, &metrics),
                fleet: Fleet::new(section),
                metrics,
            }
        }

        fn join(&self) -> Arc<Worker> {
            let build = |slot| self.factory.build(spec(URL), slot, None);
            self.fleet.add(build)
        }

        fn remove(&self, worker: &Worker) {
            worker.endpoint.mark_removed();
            self.fleet.remove(worker);
        }
    }

    fn urls(fleet: &Fleet) -> Vec<String> {
        let workers = fleet.workers();
        let staying = workers.iter().filter(|worker| !worker.is_draining());
        staying.map(|worker| worker.url().to_string()).collect()
    }

    #[test]
    fn metrics_survive_reuse_of_a_worker_url() {
        let bench = Bench::new();
        let mut worker = bench.join();
        for _ in 0..5000 {
            let both = Barrier::new(2);
            let next = thread::scope(|threads| {
                threads.spawn(|| {
                    both.wait();
                    bench.remove(&worker);
                });
                both.wait();
                bench.join()
            });
            next.metrics().successes.inc();
            let counted = bench.metrics.of_worker(URL).successes.get();
            assert_eq!(counted, next.metrics().successes.get());
            worker = next;
        }
    }

    #[test]
    fn removed_worker_is_given_no_model() {
        let bench = Bench::new();
        let worker = bench.join();
        bench.remove(&worker);
        let labels = BTreeMap::from([("model_id".to_owned(), "ghost".to_owned())]);
        let report = Report::new(labels, None);
        transitions::set_model(&bench.fleet, &worker.endpoint, Some(report), &bench.metrics);
        assert_eq!(worker.endpoint.model_info.load().model, UNKNOWN_MODEL);
    }

    #[tokio::test]
    async fn reconcile_adds_and_removes_the_workers_of_its_own_source_only() {
        let Bench { fleet, factory, .. } = Bench::new();
        let (joined, _probers) = mpsc::unbounded_channel();
        let registry = Registry::new(Arc::clone(&fleet), factory, joined);
        let list = ["http://a:1", "http://b:1", "http://b:1"].map(spec);
        registry.reconcile(Source::CONFIGURED, &list).unwrap();
        assert_eq!(urls(&fleet), ["http://a:1", "http://b:1", "http://b:1"]);
        let added = spec("http://c:1").url;
        let keep = |spec: &WorkerSpec, _: &Labels| Ok(spec.clone());
        registry.add(&added, keep).unwrap();
        registry.reconcile(Source::CONFIGURED, &list[1..2]).unwrap();
        assert_eq!(urls(&fleet), ["http://b:1", "http://c:1"]);
        registry.reconcile(Source::CONFIGURED, &list).unwrap();
        assert_eq!(urls(&fleet).len(), 4);
    }
}
