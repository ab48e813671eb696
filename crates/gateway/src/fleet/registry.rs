//! The one way in for workers: configured, or registered by request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::Verdict;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::claims::{Change, Claims, Listed, Registered};
use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::model_info::Labels;
use super::registration_error::RegistrationError;
use super::source::Source;
use super::source_state::{SourceReport, SourceState, SourceStates};
use super::spec::WorkerSpec;
use super::worker::Worker;
use super::worker_factory::WorkerFactory;
use super::{drain, transitions};
use crate::config::{FleetSection, WorkerUrl};
use crate::telemetry::Metrics;

/// Adds, changes and removes workers, one change at a time.
#[derive(Debug)]
pub(crate) struct Registry {
    fleet: Arc<Fleet>,
    factory: WorkerFactory,
    /// To the health checks; no more than there are workers.
    joined: mpsc::UnboundedSender<Arc<Endpoint>>,
    entries: Mutex<Entries>,
    sources: SourceStates,
}

/// What is known of registrations besides the workers themselves.
#[derive(Debug, Default)]
struct Entries {
    claims: Claims,
    /// In the order of their registration.
    known: Vec<Entry>,
    /// Workers that are registered only for clients that wait for them, and how many do.
    waiters: BTreeMap<Uuid, usize>,
}

/// A worker that has not been removed.
#[derive(Debug)]
struct Entry {
    worker: Arc<Worker>,
    source: Source,
    /// What its source says of it.
    listed: Option<Listed>,
}

impl Entries {
    fn source_of(&self, worker: &Worker) -> Source {
        let mut known = self.known.iter();
        let entry = known.find(|entry| entry.worker.id == worker.id);
        entry.map_or(Source::API, |entry| entry.source)
    }

    /// What is to be done so that the workers are those that are claimed.
    fn changes(&self) -> Vec<Change> {
        let known = self.known.iter().map(|entry| {
            let listed = entry.listed.as_ref();
            Registered {
                id: entry.worker.id,
                // The list's own is found sooner than another that is equal.
                url: listed.map_or(entry.worker.url(), |listed| &listed.spec.url),
                source: entry.source,
                listed,
            }
        });
        self.claims.changes(&known.collect::<Vec<_>>())
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
            sources: SourceStates::default(),
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
        self.factory.startup_timeout()
    }

    /// Treats workers by other options, and probes them by those that are in force now.
    pub(crate) fn reconfigure(&self, options: FleetSection) {
        // No spec changes meanwhile.
        let _entries = self.entries();
        self.fleet.set_options(options);
        for server in self.fleet.servers() {
            let endpoint = &server.endpoint;
            let thresholds = self.factory.thresholds(&endpoint.config.load().spec.health);
            endpoint.update_health(|health| health.set_thresholds(thresholds));
            endpoint.probe_now.notify_one();
        }
    }

    /// The last list of a source.
    pub(crate) fn listed(&self, source: Source) -> Vec<Listed> {
        self.entries().claims.listed(source)
    }

    /// A source is no more: nor are its workers, unless another one lists them.
    pub(crate) fn retire(&self, source: Source) {
        let _ = self.reconcile(source, &[]);
        self.sources.forget(source);
        self.factory.metrics.discovery.ended(source.name());
    }

    /// Makes the workers of a source those of `list`: adds what is missing, in order, changes what
    /// the source says otherwise than before, and removes what is no longer in it.
    ///
    /// Where several sources name a URL, the options come first, then requests of clients, then
    /// discovery; the worker goes over to the next one when the first no longer has it. What was
    /// removed by request comes back once its source has left it out.
    ///
    /// # Errors
    /// When no health check would start for a new worker.
    pub(crate) fn reconcile(
        &self,
        source: Source,
        list: &[Listed],
    ) -> Result<(), RegistrationError> {
        if self.joined.is_closed() {
            return Err(RegistrationError::Stopping);
        }
        let begun = Instant::now();
        let mut entries = self.entries();
        entries.claims.list(source, list);
        self.settle(&mut entries)?;
        self.sources.listed(source, list.len());
        let metrics = &self.factory.metrics.discovery;
        metrics.synced(source.name(), list.len(), begun.elapsed());
        Ok(())
    }

    /// Makes the workers those that are claimed.
    fn settle(&self, entries: &mut Entries) -> Result<(), RegistrationError> {
        for change in entries.changes() {
            match change {
                Change::Add(source, listed) => {
                    let spec = WorkerSpec::clone(&listed.spec);
                    self.join(spec, source, Some(listed), entries)?;
                }
                Change::Follow { id, source, listed } => {
                    let mut known = entries.known.iter_mut();
                    if let Some(entry) = known.find(|entry| entry.worker.id == id) {
                        self.follow(entry, source, listed);
                    }
                }
                Change::Remove(id) => {
                    let mut known = entries.known.iter();
                    if let Some(entry) = known.find(|entry| entry.worker.id == id) {
                        let worker = Arc::clone(&entry.worker);
                        self.start_removal(&worker, entries);
                    }
                }
            }
        }
        Ok(())
    }

    /// A worker is another source's, or its source says something else of it. A change by request
    /// stands until its source's own word on it changes.
    fn follow(&self, entry: &mut Entry, source: Source, listed: Option<Listed>) {
        let endpoint = &entry.worker.endpoint;
        let said = entry.listed.as_ref().map(|listed| &listed.spec);
        let says = listed.as_ref().map(|listed| &listed.spec);
        if let Some(spec) = says.filter(|spec| Some(*spec) != said)
            && endpoint.config.load().spec != **spec
        {
            self.apply_spec(endpoint, WorkerSpec::clone(spec));
        }
        let ready = listed.as_ref().is_none_or(|listed| listed.ready);
        let was_ready = entry.listed.as_ref().is_none_or(|listed| listed.ready);
        match (was_ready, ready) {
            (true, false) => transitions::hold_back(&self.fleet, endpoint),
            (false, true) => transitions::admit(&self.fleet, endpoint),
            _ => {}
        }
        (entry.source, entry.listed) = (source, listed);
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
            endpoint.check_tls_name(&spec)?;
            let source = Source::API.name();
            self.factory
                .metrics
                .discovery
                .registered(source, "duplicate");
            self.reregister(&worker, spec)?;
            if lifetime == RegistrationLifetime::WhileWaiting {
                let waiters = entries.waiters.entry(worker.id);
                waiters.and_modify(|waiting| *waiting += 1);
            } else {
                self.keep(&worker, &mut entries);
            }
            return Ok(worker);
        }
        let spec = build_spec(&WorkerSpec::new(url.clone()), &Labels::new())?;
        let worker = self.join(spec, Source::API, None, &mut entries)?;
        entries.claims.request(worker.url());
        // A source may have listed it before.
        self.settle(&mut entries)?;
        if lifetime == RegistrationLifetime::WhileWaiting {
            entries.waiters.insert(worker.id, 1);
        }
        Ok(worker)
    }

    /// Adds a worker to the fleet, and starts its health checks.
    fn join(
        &self,
        spec: WorkerSpec,
        source: Source,
        listed: Option<Listed>,
        entries: &mut Entries,
    ) -> Result<Arc<Worker>, RegistrationError> {
        let joined_at = (source != Source::CONFIGURED).then(|| self.fleet.now());
        if joined_at.is_some() {
            self.factory.warn_without_key(&spec);
        }
        let build = |slot| self.factory.build(spec, slot, joined_at);
        let worker = self.fleet.add(build);
        entries.known.push(Entry {
            worker: Arc::clone(&worker),
            source,
            listed,
        });
        let joined = self.joined.send(Arc::clone(&worker.endpoint));
        joined.map_err(|_| RegistrationError::Stopping)?;
        if joined_at.is_some() {
            let (url, source) = (worker.url(), source.name());
            info!(worker = %url, id = %worker.id, source, "worker registered");
        }
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
        endpoint.check_tls_name(&spec)?;
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
        let mut entries = self.entries();
        if entries.known.iter().any(|it| it.worker.id == worker.id) {
            entries.claims.withdraw(worker.url());
        }
        self.start_removal(worker, &mut entries);
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
        if first.availability().unready {
            transitions::hold_back(&self.fleet, endpoint);
        }
        drain::drain_new_ranks(&self.fleet, first);
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
            entries.known.retain(|entry| entry.worker.id != worker.id);
            self.drain(&worker, source);
        }
    }

    /// A source says how it is doing.
    pub(crate) fn report(&self, source: Source, state: SourceState) {
        self.sources.report(source, state);
        let (metrics, source) = (&self.factory.metrics.discovery, source.name());
        match state {
            SourceState::Starting => metrics.waits(source),
            SourceState::Following => metrics.follows(source),
            SourceState::Failing(reason) => metrics.failed(source, reason),
        }
    }

    /// A source that consists of several says which of them fail, and why.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn report_parts(&self, source: Source, failing: BTreeMap<String, &'static str>) {
        self.sources.parts(source, failing);
    }

    /// How the sources that come and go by themselves are doing.
    pub(crate) fn sources(&self) -> Vec<SourceReport> {
        self.sources.all()
    }

    /// Where a worker comes from.
    pub(crate) fn source_of(&self, worker: &Worker) -> Source {
        self.entries().source_of(worker)
    }

    fn drain(&self, worker: &Arc<Worker>, source: Source) {
        if drain::start_drain(&self.fleet, worker) {
            self.metrics()
                .discovery
                .deregistered(source.name(), "removed");
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
        self.keep(worker, &mut self.entries());
    }

    /// A worker stays until it is removed by request, whatever other sources list.
    fn keep(&self, worker: &Worker, entries: &mut Entries) {
        entries.waiters.remove(&worker.id);
        if entries.known.iter().any(|it| it.worker.id == worker.id) {
            entries.claims.request(worker.url());
            // Nothing joins here that could find the gateway stopping.
            let _ = self.settle(entries);
        }
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
            entries.claims.release(worker.url());
            entries.waiters.remove(&worker.id);
            let _ = self.settle(&mut entries);
        }
        stays || !worker.is_draining()
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
