//! One worker.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use routing::{Candidate, Figures, Load, Verdict};
use tokio::sync::Notify;
use uuid::Uuid;

use super::slots::Slot;
use super::standing::{Glance, Standing};
use super::{Connections, Fleet, Identity, Room, Terms, WorkerSpec};
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
    pub(crate) terms: ArcSwap<Terms>,
    /// What is in flight there.
    pub(crate) load: Arc<Load>,
    /// Connections to it.
    pub(crate) connections: Connections,
    /// What it said of itself.
    pub(crate) identity: ArcSwap<Identity>,
    pub(super) metrics: WorkerMetrics,
    /// What its peers are compared with; `None` when they are not compared.
    pub(super) tally: Option<Tally>,
    /// Rung for a probe at once.
    pub(super) wake: Notify,
    /// Who waits for a place, where workers have a cap.
    pub(super) room: Option<Arc<Room>>,
    /// It is leaving: somebody waits for the end of what it has.
    leaving: AtomicBool,
    /// Rung whenever a request of a leaving worker has ended.
    pub(super) left: Notify,
    /// It has left.
    pub(super) gone: AtomicBool,
    /// Where it works.
    pub(super) home: OnceLock<Weak<Fleet>>,
    standing: Mutex<Standing>,
    /// Glances at the standing that requests take without a lock.
    ready: AtomicBool,
    clean: AtomicBool,
    away: AtomicBool,
    /// When it was last probed for a long silence, milliseconds.
    pub(super) doubted: AtomicU64,
    /// Counts its lives: what routing learnt of an earlier one does not hold.
    generation: AtomicU32,
}

/// What a worker starts with.
#[derive(Debug)]
pub(crate) struct NewWorker {
    pub(crate) slot: Slot,
    pub(crate) spec: WorkerSpec,
    pub(crate) connections: Connections,
    pub(crate) identity: Identity,
    pub(crate) standing: Standing,
    pub(crate) metrics: WorkerMetrics,
    /// Whether its figures are compared with its peers'.
    pub(crate) compared: bool,
    pub(crate) room: Option<Arc<Room>>,
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
            terms: ArcSwap::from_pointee(new.spec.into()),
            load: Arc::default(),
            connections: new.connections,
            identity: ArcSwap::from_pointee(new.identity),
            metrics: new.metrics,
            tally: new.compared.then(Tally::default),
            wake: Notify::new(),
            room: new.room,
            leaving: AtomicBool::new(false),
            left: Notify::new(),
            gone: AtomicBool::new(false),
            home: OnceLock::new(),
            standing: Mutex::new(new.standing),
            ready: AtomicBool::new(false),
            clean: AtomicBool::new(true),
            away: AtomicBool::new(false),
            doubted: AtomicU64::new(0),
            generation: AtomicU32::new(new.slot.generation),
        }
    }

    /// Whether it came while the gateway ran.
    pub(crate) fn came_later(&self) -> bool {
        self.look(|standing| standing.came.is_some())
    }

    /// Whether this is its id.
    pub(crate) fn is_called(&self, id: &str) -> bool {
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
    pub(super) fn one_left(&self) {
        if let Some(room) = &self.room {
            room.one_left();
        }
        if self.is_leaving() {
            self.left.notify_one();
        }
    }

    /// Whether it is leaving.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(SeqCst)
    }

    /// Its present life.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
    }

    /// It restarted, or its cache was flushed.
    pub(super) fn begin_anew(&self) {
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
    pub(crate) fn glance(&self) -> Glance {
        self.standing().glance()
    }

    /// Looks at its standing.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Standing) -> T) -> T {
        look(&self.standing())
    }

    /// Changes its standing; tells it before and after. Only [`Fleet`] does, which draws the
    /// consequences.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> (Glance, Glance, T) {
        let mut standing = self.standing();
        let before = standing.glance();
        let result = change(&mut standing);
        let after = standing.glance();
        self.ready.store(after.ready, Relaxed);
        self.clean.store(after.clean, Relaxed);
        self.away.store(after.verdict == Verdict::NotReady, Relaxed);
        self.leaving.store(after.draining, SeqCst);
        (before, after, result)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Figures of a worker, added up without a lock until somebody takes them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    requests: AtomicU64,
    failures: AtomicU64,
    waited_micros: AtomicU64,
    tokens: AtomicU64,
}

impl Tally {
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
    pub(super) fn take(&self) -> Figures {
        Figures {
            requests: self.requests.swap(0, Relaxed),
            failures: self.failures.swap(0, Relaxed),
            waited: Duration::from_micros(self.waited_micros.swap(0, Relaxed)),
            tokens: self.tokens.swap(0, Relaxed),
        }
    }
}
