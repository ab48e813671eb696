//! One routable worker.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use http::HeaderValue;
use routing::{Breaker, Candidate, Load, Turns, hash_url};
use tokio::sync::Notify;
use uuid::Uuid;

use super::active_keys::ActiveKeys;
use super::endpoint::Endpoint;
use super::load_report::ReportedLoad;
use super::outlier_stats::OutlierStats;
use super::prediction_error::PredictionError;
use super::role::Role;
use super::slots::Slot;
use super::status::{Availability, WorkerState};
use super::totals::WorkerTotals;
use crate::config::WorkerUrl;
use crate::telemetry::WorkerMetrics;

/// A worker that requests are routed to: an endpoint in one role, with a load of its own.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Its place in the fleet's list, from registration to removal.
    pub(crate) slot: usize,
    pub(crate) id: Uuid,
    /// The id, for `x-smg-routed-worker-id`.
    pub(crate) id_header: HeaderValue,
    /// Its number among the data-parallel ranks of its endpoint; 0 where there is one.
    rank: usize,
    /// Its URL, which policies share.
    url_name: Name,
    /// Its name once it is known to be a rank.
    rank_name: OnceLock<Name>,
    /// Requests in flight.
    pub(crate) load: Arc<Load>,
    /// What it reports of its load.
    pub(crate) reported: ReportedLoad,
    /// What it has done so far.
    pub(crate) totals: WorkerTotals,
    /// How far predictions of what it has cached are off.
    pub(crate) prediction_error: PredictionError,
    /// Routing keys of the requests in flight.
    pub(crate) active_keys: ActiveKeys,
    metrics: WorkerMetrics,
    /// The same under the name of a rank, once it is known to be one.
    rank_metrics: OnceLock<WorkerMetrics>,
    /// `None` where workers are not compared with their peers.
    pub(crate) outlier_stats: Option<OutlierStats>,
    /// Its turns while it is in slow start.
    pub(crate) turns: Turns,
    /// Notified whenever a request of a draining worker has ended.
    pub(super) request_done: Notify,
    state: Mutex<WorkerState>,
    /// Copies of the availability that requests read without a lock.
    ready: AtomicBool,
    clean: AtomicBool,
    lost: AtomicBool,
    draining: AtomicBool,
    /// Rises with every restart and flush: what routing learnt before does not hold.
    generation: AtomicU32,
}

/// A name, with its hash.
#[derive(Debug)]
struct Name {
    text: Arc<str>,
    hash: u64,
}

impl Name {
    fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            hash: hash_url(text),
        }
    }
}

/// What a worker starts with.
#[derive(Debug)]
pub(crate) struct NewWorker {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) slot: Slot,
    pub(crate) rank: usize,
    pub(crate) state: WorkerState,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) outlier_stats: Option<OutlierStats>,
}

impl Worker {
    pub(crate) fn new(new: NewWorker) -> Self {
        let id = Uuid::new_v4();
        let id_header = HeaderValue::try_from(id.to_string());
        Self {
            url_name: Name::new(new.endpoint.url.as_str()),
            rank_name: OnceLock::new(),
            endpoint: new.endpoint,
            slot: new.slot.number,
            id,
            id_header: id_header.unwrap_or(HeaderValue::from_static("unknown")),
            rank: new.rank,
            load: Arc::default(),
            reported: ReportedLoad::default(),
            totals: WorkerTotals::default(),
            prediction_error: PredictionError::default(),
            active_keys: ActiveKeys::default(),
            metrics: new.metrics,
            rank_metrics: OnceLock::new(),
            outlier_stats: new.outlier_stats,
            turns: Turns::default(),
            request_done: Notify::new(),
            state: Mutex::new(new.state),
            ready: AtomicBool::new(false),
            clean: AtomicBool::new(true),
            lost: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            generation: AtomicU32::new(new.slot.generation),
        }
    }

    /// Where it is reached.
    pub(crate) fn url(&self) -> &WorkerUrl {
        &self.endpoint.url
    }

    /// The data-parallel rank that its requests go to; `None` where the endpoint has one.
    pub(crate) fn rank(&self) -> Option<usize> {
        (self.endpoint.ranks() > 1).then_some(self.rank)
    }

    /// Whether it stands for its endpoint: the first rank, or the only one.
    pub(crate) fn is_first_rank(&self) -> bool {
        self.rank == 0
    }

    /// Whether it is one of the first so many ranks.
    pub(super) fn is_below(&self, ranks: usize) -> bool {
        self.rank < ranks
    }

    /// Whether both are ranks of the same number.
    pub(super) fn has_rank_of(&self, other: &Self) -> bool {
        self.rank == other.rank
    }

    /// Its name: the URL, and behind `@` the rank, where the endpoint has several.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.hashed_name().text
    }

    /// The hash by which other gateways know it.
    pub(crate) fn name_hash(&self) -> u64 {
        self.hashed_name().hash
    }

    fn hashed_name(&self) -> &Name {
        let url = &self.url_name;
        let of_rank = |rank| Name::new(&format!("{}@{rank}", url.text));
        self.rank()
            .map_or(url, |rank| self.rank_name.get_or_init(|| of_rank(rank)))
    }

    /// Its counters.
    pub(crate) fn metrics(&self) -> &WorkerMetrics {
        self.rank_metrics.get().unwrap_or(&self.metrics)
    }

    /// Counts under the name of a rank from now on.
    pub(super) fn set_rank_metrics(&self, of: impl FnOnce(&str) -> WorkerMetrics) {
        if self.rank().is_some() {
            self.metrics.forget();
            self.rank_metrics.get_or_init(|| of(self.name()));
        }
    }

    /// Its part in prefill/decode pairs.
    pub(crate) fn role(&self) -> Role {
        self.endpoint.model_info.load().role
    }

    /// Whether its replies speak of the cache that routing has in mind: not those of a decode worker,
    /// nor those of ranks that the engine itself chooses among.
    pub(crate) fn speaks_of_one_cache(&self) -> bool {
        let info = self.endpoint.model_info.load();
        info.role != Role::Decode && (self.rank().is_some() || info.ranks() == 1)
    }

    /// Whether `id` is its id.
    pub(crate) fn has_id(&self, id: &str) -> bool {
        Uuid::parse_str(id).is_ok_and(|id| id == self.id)
    }

    /// Whether it joined while the gateway ran.
    pub(crate) fn joined_at_runtime(&self) -> bool {
        self.with_state(|state| state.joined_at.is_some())
    }

    /// Whether it is not draining, and its verdict is ready or suspect.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Whether its process is gone, as its probes show: requests there need not wait any longer.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Relaxed)
    }

    /// Whether its breaker holds no failure.
    pub(crate) fn is_clean(&self) -> bool {
        self.clean.load(Relaxed)
    }

    /// Whether it finishes what it has and gets nothing new.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// A request has ended.
    pub(crate) fn request_finished(&self) {
        if self.is_draining() {
            self.request_done.notify_one();
        }
    }

    /// How often it has restarted or been flushed, counted on from its slot's last worker.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
    }

    /// It has restarted, or its cache was flushed.
    pub(super) fn bump_generation(&self) {
        self.generation.fetch_add(1, Relaxed);
    }

    /// Its slot, with its generation.
    pub(super) fn slot(&self) -> Slot {
        Slot {
            number: self.slot,
            generation: self.generation(),
        }
    }

    /// As policies know it.
    pub(crate) fn candidate(&self) -> Candidate {
        let name = self.hashed_name();
        Candidate {
            slot: self.slot,
            generation: self.generation(),
            url: Arc::clone(&name.text),
            url_hash: name.hash,
            load: Arc::clone(&self.load),
            crossing_tokens: 0,
        }
    }

    pub(crate) fn availability(&self) -> Availability {
        self.state().availability()
    }

    /// Failures in the present run that its breaker has counted.
    pub(crate) fn breaker_failures(&self) -> usize {
        self.with_state(|state| state.breaker.as_ref().map_or(0, Breaker::failures))
    }

    /// Reads its state.
    pub(super) fn with_state<T>(&self, read: impl FnOnce(&WorkerState) -> T) -> T {
        read(&self.state())
    }

    /// Changes its state; returns the availability before and after. Only
    /// [`Fleet`](super::Fleet) calls it, for its observer must hear of it.
    pub(super) fn update_state<T>(
        &self,
        update: impl FnOnce(&mut WorkerState) -> T,
    ) -> (Availability, Availability, T) {
        let mut state = self.state();
        let before = state.availability();
        let result = update(&mut state);
        let after = state.availability();
        self.ready.store(after.ready, Relaxed);
        self.clean.store(after.clean, Relaxed);
        self.lost.store(after.lost, Relaxed);
        self.draining.store(after.draining, SeqCst);
        (before, after, result)
    }

    /// The copies of its availability, before anything else knows of it.
    pub(super) fn adopt_state(&self) {
        self.update_state(|_| ());
    }

    fn state(&self) -> MutexGuard<'_, WorkerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
