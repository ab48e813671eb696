//! One worker.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::HeaderValue;
use routing::{Health, Load, Thresholds, Verdict};
use uuid::Uuid;

use super::{Connections, Identity};
use crate::config::{Secret, WorkerUrl};

/// A worker: where it is, what it said of itself, how it is doing.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: Uuid,
    /// The id, for `x-smg-routed-worker-id`.
    pub(crate) id_header: HeaderValue,
    pub(crate) url: WorkerUrl,
    /// `Bearer <key>`, when the worker has a key.
    pub(crate) bearer: Option<HeaderValue>,
    /// What is in flight there.
    pub(crate) load: Arc<Load>,
    /// Connections to it.
    pub(crate) connections: Connections,
    /// What it said of itself.
    pub(crate) identity: ArcSwap<Identity>,
    health: Mutex<Health>,
    ready: AtomicBool,
    /// Counts its lives: what routing learnt of an earlier one does not hold.
    generation: AtomicU32,
}

impl Worker {
    pub(crate) fn new(
        url: WorkerUrl,
        key: Option<&Secret>,
        connections: Connections,
        identity: Identity,
        thresholds: Thresholds,
    ) -> Self {
        let bearer = key.and_then(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose())).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let id = Uuid::new_v4();
        let id_header = HeaderValue::try_from(id.to_string());
        Self {
            id,
            id_header: id_header.unwrap_or(HeaderValue::from_static("unknown")),
            url,
            bearer,
            load: Arc::default(),
            connections,
            identity: ArcSwap::from_pointee(identity),
            health: Mutex::new(Health::new(thresholds)),
            ready: AtomicBool::new(false),
            generation: AtomicU32::new(0),
        }
    }

    /// Whether this is its id.
    pub(crate) fn is_called(&self, id: &str) -> bool {
        Uuid::parse_str(id).is_ok_and(|id| id == self.id)
    }

    /// Whether it may get requests.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Its present life.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// It restarted, or its cache was flushed.
    pub(super) fn begin_anew(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Where it stands.
    pub(crate) fn verdict(&self) -> Verdict {
        self.health
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .verdict()
    }

    /// Changes its record; tells the verdict before and after.
    pub(crate) fn judge(&self, change: impl FnOnce(&mut Health)) -> (Verdict, Verdict) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let before = health.verdict();
        change(&mut health);
        let after = health.verdict();
        self.ready.store(after == Verdict::Ready, Ordering::Relaxed);
        (before, after)
    }
}
