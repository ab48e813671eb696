//! What all connections of a worker share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::fault_injector::FaultBox;
use super::request_log::{Counts, Ring};
use super::scheduler::Floor;
use crate::engine::mix;
use crate::options::SimOptions;

/// `/v1/responses` answers kept for `GET /v1/responses/{id}`.
const KEPT_RESPONSES: usize = 1000;

/// Shared state of one worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) options: SimOptions,
    pub(crate) floor: Arc<Floor>,
    pub(crate) faults: FaultBox,
    pub(crate) counts: Arc<Counts>,
    pub(crate) ring: Ring,
    responses: Mutex<VecDeque<(String, Bytes)>>,
    ids: AtomicU64,
    identity: u64,
}

impl Worker {
    pub(crate) fn new(options: SimOptions, port: u16) -> Self {
        let counts = Arc::new(Counts::default());
        let floor = Floor::new(&options.engine(), options.dp_size, Arc::clone(&counts));
        Self {
            floor: Arc::new(floor),
            faults: FaultBox::new(options.faults.clone(), options.seed),
            ring: Ring::new(options.record_requests),
            counts,
            responses: Mutex::default(),
            ids: AtomicU64::new(0),
            identity: mix(options.seed, u64::from(port)),
            options,
        }
    }

    /// A request id, different on every worker of a seed and port.
    pub(crate) fn fresh_id(&self) -> Arc<str> {
        let number = self.ids.fetch_add(1, Relaxed);
        let high = mix(self.identity, number);
        format!("{high:016x}{:016x}", mix(high, number)).into()
    }

    /// Whether `startup_delay_ms` is over.
    pub(crate) fn is_up(&self) -> bool {
        let delay = Duration::from_millis(self.options.startup_delay_ms);
        delay.is_zero() || self.floor.now() >= delay
    }

    /// Keeps a `/v1/responses` answer, dropping the oldest.
    pub(crate) fn keep_response(&self, id: String, document: Bytes) {
        let mut kept = self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_RESPONSES {
            kept.pop_front();
        }
        kept.push_back((id, document));
    }

    pub(crate) fn kept_response(&self, id: &str) -> Option<Bytes> {
        let kept = self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kept.iter()
            .rev()
            .find(|(known, _)| known == id)
            .map(|(_, document)| document.clone())
    }
}

/// Seconds since 1970, for `created` fields.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
