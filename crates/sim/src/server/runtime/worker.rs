//! State that all connections of a worker share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use bytes::Bytes;

use super::adapters::Adapters;
use super::fault_injector::FaultInjector;
use super::request_log::{Counts, RequestLog};
use super::scheduler::{AbortTarget, Scheduler};
use super::sessions::Sessions;
use crate::engine::{EngineLoad, mix};
use crate::options::{Role, SimOptions};
use crate::server::disaggregation::state::Disaggregation;
use crate::server::parse::Text;

/// `/v1/responses` objects stored for `GET /v1/responses/{id}`.
const STORED_RESPONSES: usize = 1000;

/// Extracts the worker in a handler of the router.
pub(crate) type AppState = State<Arc<Worker>>;

/// A `/v1/responses` object, and what a further response goes on from.
#[derive(Clone, Debug)]
pub(crate) struct StoredResponse {
    pub(crate) document: Bytes,
    /// The conversation as the engine reads it.
    pub(crate) said: String,
}

/// Shared state of one worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) options: SimOptions,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) faults: FaultInjector,
    pub(crate) counts: Arc<Counts>,
    pub(crate) log: RequestLog,
    pub(crate) disaggregation: Disaggregation,
    /// Where the first rank publishes its load.
    pub(crate) load_port: Option<u16>,
    adapters: Mutex<Adapters>,
    sessions: Mutex<Sessions>,
    weight_version: Mutex<String>,
    responses: Mutex<VecDeque<(String, StoredResponse)>>,
    ids: AtomicU64,
    identity: u64,
}

impl Worker {
    pub(crate) fn new(options: SimOptions, port: u16) -> Self {
        let counts = Arc::new(Counts::default());
        let scheduler = Scheduler::new(&options.engine(), options.dp_size, Arc::clone(&counts));
        scheduler.set_prompt_source(options.prompt_source(options.disaggregation_mode));
        Self {
            scheduler: Arc::new(scheduler),
            faults: FaultInjector::new(options.faults.clone(), options.seed),
            log: RequestLog::new(options.record_requests),
            counts,
            disaggregation: Disaggregation::new(options.disaggregation_mode),
            load_port: None,
            adapters: Mutex::default(),
            sessions: Mutex::default(),
            weight_version: Mutex::new("default".to_owned()),
            responses: Mutex::default(),
            ids: AtomicU64::new(0),
            identity: mix(options.seed, u64::from(port)),
            options,
        }
    }

    /// A new request id; workers of other seeds or ports generate others.
    pub(crate) fn new_rid(&self) -> Arc<str> {
        let number = self.ids.fetch_add(1, Relaxed);
        let high = mix(self.identity, number);
        format!("{high:016x}{:016x}", mix(high, number)).into()
    }

    /// The model of a request, or the worker's own if it names none.
    pub(crate) fn model_or_own(&self, requested: Option<Text<'_>>) -> String {
        requested.map_or_else(|| self.options.model.clone(), |model| model.0.into_owned())
    }

    /// Whether `startup_delay_ms` has passed.
    pub(crate) fn is_ready(&self) -> bool {
        let delay = Duration::from_millis(self.options.startup_delay_ms);
        delay.is_zero() || self.scheduler.now() >= delay
    }

    /// Whether it takes requests: it has started, and generation is not paused.
    pub(crate) fn accepts_requests(&self) -> bool {
        self.is_ready() && self.scheduler.pauses().requested.is_none()
    }

    /// Ends sequences, and legs that wait for their partners.
    pub(crate) fn abort(&self, target: AbortTarget<'_>) {
        self.scheduler.abort(target);
        self.disaggregation.legs.abort(match target {
            AbortTarget::All => None,
            AbortTarget::Rid(rid) => Some(rid),
        });
    }

    /// Whether no request runs or waits.
    pub(crate) fn is_idle(&self) -> bool {
        let idle = |load: &EngineLoad| load.running + load.waiting == 0;
        self.disaggregation.legs.is_idle() && self.scheduler.loads().iter().all(idle)
    }

    /// The load of each rank. Legs that wait for their partners count as waiting requests.
    pub(crate) fn loads(&self) -> Vec<EngineLoad> {
        let mut loads = self.scheduler.loads();
        if self.disaggregation.role() != Role::Null {
            for (rank, load) in (0..).zip(&mut loads) {
                let legs = self.disaggregation.legs.load(rank);
                load.waiting += legs.waiting();
                load.used_tokens += legs.held_tokens;
            }
        }
        loads
    }

    pub(crate) fn adapters(&self) -> MutexGuard<'_, Adapters> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The label of the weights in use.
    pub(crate) fn weight_version(&self) -> String {
        self.lock_weight_version().clone()
    }

    pub(crate) fn set_weight_version(&self, version: String) {
        *self.lock_weight_version() = version;
    }

    fn lock_weight_version(&self) -> MutexGuard<'_, String> {
        let version = self.weight_version.lock();
        version.unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a `/v1/responses` object; the oldest is dropped beyond the limit.
    pub(crate) fn store_response(&self, id: String, response: StoredResponse) {
        let mut stored = self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if stored.len() == STORED_RESPONSES {
            stored.pop_front();
        }
        stored.push_back((id, response));
    }

    pub(crate) fn stored_response(&self, id: &str) -> Option<StoredResponse> {
        let stored = self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        stored
            .iter()
            .rev()
            .find(|(stored_id, _)| stored_id == id)
            .map(|(_, response)| response.clone())
    }
}

/// Seconds since 1970, for `created` fields.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
