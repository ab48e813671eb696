//! One worker.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use routing::{Candidate, Load, Verdict, Window};
use tokio::sync::Notify;
use uuid::Uuid;

use super::slots::Slot;
use super::status::{Availability, WorkerState};
use super::{Connections, Fleet, ModelInfo, WorkerConfig, WorkerQueue, WorkerSpec};
use crate::config::WorkerUrl;
use crate::telemetry::WorkerMetrics;

/// A worker: where it is, what it said of itself, how it is doing.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Its place in the fleet's list, from when it comes until it is gone.
    pub(crate) slot: usize,
    pub(crate) id: Uuid,
    /// The id, for `x-smg-routed-worker-id`.
    pub(crate) id_header: HeaderValue,
    pub(crate) url: WorkerUrl,
    /// On which terms it works.
    pub(crate) config: ArcSwap<WorkerConfig>,
    /// What is in flight there.
    pub(crate) load: Arc<Load>,
    /// Connections to it.
    pub(crate) connections: Connections,
    /// What it said of itself.
    pub(crate) model_info: ArcSwap<ModelInfo>,
    pub(super) metrics: WorkerMetrics,
    /// What its peers are compared with; `None` when they are not compared.
    pub(super) outlier_stats: Option<OutlierStats>,
    /// Rung for a probe at once.
    pub(super) probe_now: Notify,
    /// Who waits for a place, where workers have a cap.
    pub(super) queue: Option<Arc<WorkerQueue>>,
    /// It is leaving: somebody waits for the end of what it has.
    draining: AtomicBool,
    /// Rung whenever a request of a leaving worker has ended.
    pub(super) request_done: Notify,
    /// It has left.
    pub(super) removed: AtomicBool,
    /// Where it works.
    pub(super) fleet: OnceLock<Weak<Fleet>>,
    state: Mutex<WorkerState>,
    /// Glances at the standing that requests take without a lock.
    ready: AtomicBool,
    clean: AtomicBool,
    away: AtomicBool,
    /// When it was last probed for a long silence, milliseconds.
    pub(super) last_requested_probe: AtomicU64,
    /// Counts its lives: what routing learnt of an earlier one does not hold.
    generation: AtomicU32,
}

/// What a worker starts with.
#[derive(Debug)]
pub(crate) struct NewWorker {
    pub(crate) slot: Slot,
    pub(crate) spec: WorkerSpec,
    pub(crate) connections: Connections,
    pub(crate) model_info: ModelInfo,
    pub(crate) state: WorkerState,
    pub(crate) metrics: WorkerMetrics,
    /// Whether its figures are compared with its peers'.
    pub(crate) compared: bool,
    pub(crate) worker_queue: Option<Arc<WorkerQueue>>,
}

impl Worker {
    pub(crate) fn new(new: NewWorker) -> Self {
        let id = Uuid::new_v4();
        let id_header = HeaderValue::try_from(id.to_string());
        Self {
            slot: new.slot.number,
            id,
            id_header: id_header.unwrap_or(HeaderValue::from_static("unknown")),
            url: new.spec.url.clone(),
            config: ArcSwap::from_pointee(new.spec.into()),
            load: Arc::default(),
            connections: new.connections,
            model_info: ArcSwap::from_pointee(new.model_info),
            metrics: new.metrics,
            outlier_stats: new.compared.then(OutlierStats::default),
            probe_now: Notify::new(),
            queue: new.worker_queue,
            draining: AtomicBool::new(false),
            request_done: Notify::new(),
            removed: AtomicBool::new(false),
            fleet: OnceLock::new(),
            state: Mutex::new(new.state),
            ready: AtomicBool::new(false),
            clean: AtomicBool::new(true),
            away: AtomicBool::new(false),
            last_requested_probe: AtomicU64::new(0),
            generation: AtomicU32::new(new.slot.generation),
        }
    }

    /// Whether it came while the gateway ran.
    pub(crate) fn joined_at_runtime(&self) -> bool {
        self.with_state(|state| state.joined_at.is_some())
    }

    /// Whether this is its id.
    pub(crate) fn has_id(&self, id: &str) -> bool {
        Uuid::parse_str(id).is_ok_and(|id| id == self.id)
    }

    /// Whether its probes pass and it is not leaving.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Whether its probes fail: what waits there for an answer need wait no longer.
    pub(crate) fn is_away(&self) -> bool {
        self.away.load(Relaxed)
    }

    /// Whether nothing is held against it.
    pub(super) fn is_clean(&self) -> bool {
        self.clean.load(Relaxed)
    }

    /// A request has ended.
    pub(super) fn request_finished(&self) {
        if let Some(queue) = &self.queue {
            queue.slot_freed();
        }
        if self.is_draining() {
            self.request_done.notify_one();
        }
    }

    /// Whether it is leaving.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// Its present life.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
    }

    /// It restarted, or its cache was flushed.
    pub(super) fn bump_generation(&self) {
        self.generation.fetch_add(1, Relaxed);
    }

    /// Its place, and which of those who had it this one is.
    pub(super) fn slot(&self) -> Slot {
        Slot {
            number: self.slot,
            generation: self.generation(),
        }
    }

    /// As policies know it.
    pub(super) fn candidate(&self) -> Candidate {
        Candidate {
            slot: self.slot,
            generation: self.generation(),
            url: self.url.as_str().into(),
            load: Arc::clone(&self.load),
        }
    }

    /// Where it stands.
    pub(crate) fn availability(&self) -> Availability {
        self.state().availability()
    }

    /// Looks at its standing.
    pub(super) fn with_state<T>(&self, look: impl FnOnce(&WorkerState) -> T) -> T {
        look(&self.state())
    }

    /// Changes its standing; tells it before and after. Only [`Fleet`] does, which draws the
    /// consequences.
    pub(super) fn update_state<T>(
        &self,
        change: impl FnOnce(&mut WorkerState) -> T,
    ) -> (Availability, Availability, T) {
        let mut state = self.state();
        let before = state.availability();
        let result = change(&mut state);
        let after = state.availability();
        self.ready.store(after.ready, Relaxed);
        self.clean.store(after.clean, Relaxed);
        self.away.store(after.verdict == Verdict::NotReady, Relaxed);
        self.draining.store(after.draining, SeqCst);
        (before, after, result)
    }

    fn state(&self) -> MutexGuard<'_, WorkerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Figures of a worker, added up without a lock until somebody takes them.
#[derive(Debug, Default)]
pub(super) struct OutlierStats {
    requests: AtomicU64,
    failures: AtomicU64,
    waited_micros: AtomicU64,
    tokens: AtomicU64,
}

impl OutlierStats {
    pub(super) fn ended(&self, failed: bool) {
        self.requests.fetch_add(1, Relaxed);
        self.failures.fetch_add(failed.into(), Relaxed);
    }

    pub(super) fn first_byte(&self, waited: Duration, tokens: u64) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.waited_micros.fetch_add(micros, Relaxed);
        self.tokens.fetch_add(tokens, Relaxed);
    }

    /// The figures since they were last taken.
    pub(super) fn take(&self) -> Window {
        Window {
            requests: self.requests.swap(0, Relaxed),
            failures: self.failures.swap(0, Relaxed),
            waited: Duration::from_micros(self.waited_micros.swap(0, Relaxed)),
            tokens: self.tokens.swap(0, Relaxed),
        }
    }
}
