//! Where a worker is reached: its URL, its connections, its health, and what it says of itself.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Method;
use routing::{Health, Verdict};
use tokio::sync::Notify;

use super::header_overrides::HeaderOverrides;
use super::model_info::ModelInfo;
use super::registration_error::RegistrationError;
use super::spec::{WorkerConfig, WorkerSpec};
use crate::config::WorkerUrl;
use crate::upstream::{Client, ControlRequest, Repeat};

/// Shortest time between probes that silence asks for, milliseconds.
const MIN_PROBE_GAP_MS: u64 = 5000;

/// A server: its address, its transport and what it reports. A routable worker is an endpoint in
/// a role.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) url: WorkerUrl,
    pub(crate) client: Client,
    /// How it is registered.
    pub(crate) config: ArcSwap<WorkerConfig>,
    /// What it reports of itself.
    pub(crate) model_info: ArcSwap<ModelInfo>,
    pub(crate) header_overrides: HeaderOverrides,
    /// Whose order the engine carries out now, and which ones follow.
    pub(crate) order_turns: Arc<tokio::sync::Mutex<()>>,
    /// Data-parallel ranks that requests are routed to; 1 where its engine distributes them.
    ranks: AtomicUsize,
    health: Mutex<Health>,
    /// Notified for a probe at once.
    pub(super) probe_now: Notify,
    requested_probes: RequestedProbes,
    removed: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(
        spec: WorkerSpec,
        client: Client,
        model_info: ModelInfo,
        health: Health,
    ) -> Arc<Self> {
        Arc::new(Self {
            url: spec.url.clone(),
            client,
            config: ArcSwap::from_pointee(spec.into()),
            model_info: ArcSwap::from_pointee(model_info),
            header_overrides: HeaderOverrides::default(),
            order_turns: Arc::default(),
            ranks: AtomicUsize::new(1),
            health: Mutex::new(health),
            probe_now: Notify::new(),
            requested_probes: RequestedProbes::default(),
            removed: AtomicBool::new(false),
        })
    }

    /// A question that the gateway asks with the worker's own key.
    pub(crate) fn question<'a>(&'a self, method: &Method, path: &'a str) -> ControlRequest<'a> {
        ControlRequest {
            method: method.clone(),
            url: &self.url,
            path,
            bearer: self.config.load().bearer.clone(),
            body: Bytes::new(),
            line: None,
            repeat: Repeat::Once,
        }
    }

    /// Whether `spec` has the name that connections are made with: it stays for as long as the
    /// endpoint is registered.
    pub(super) fn check_tls_name(&self, spec: &WorkerSpec) -> Result<(), RegistrationError> {
        if self.url.tls_name() == spec.url.tls_name() {
            return Ok(());
        }
        let why = "tls_server_name: cannot change; remove the worker and add it again";
        Err(RegistrationError::Invalid(why.to_owned()))
    }

    /// Data-parallel ranks that requests are routed to.
    pub(crate) fn ranks(&self) -> usize {
        self.ranks.load(Relaxed)
    }

    pub(super) fn set_ranks(&self, ranks: usize) {
        self.ranks.store(ranks, Relaxed);
    }

    /// Whether requests do not know of it: it has never been ready, and is not registered for a
    /// model.
    pub(super) fn is_unseen(&self) -> bool {
        let was_ready = !matches!(self.verdict(), Verdict::Pending | Verdict::Failed);
        !was_ready && self.config.load().spec.model.is_none()
    }

    /// What its probes say.
    pub(super) fn verdict(&self) -> Verdict {
        self.health
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .verdict()
    }

    /// Whether requests there are lost.
    pub(super) fn is_lost(&self) -> bool {
        self.health
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_lost()
    }

    /// Changes its health; returns what the probes said before.
    pub(super) fn update_health(&self, update: impl FnOnce(&mut Health)) -> Verdict {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let before = health.verdict();
        update(&mut health);
        before
    }

    /// Whether silence may ask for a probe at `now`: not for every request that waits.
    pub(super) fn may_request_probe(&self, now: Duration) -> bool {
        self.requested_probes.take(now)
    }

    /// Whether it has left the fleet.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    /// It leaves the fleet; its prober ends.
    pub(super) fn mark_removed(&self) {
        self.removed.store(true, Relaxed);
        self.probe_now.notify_one();
    }
}

/// When silence may ask for a probe again, milliseconds.
#[derive(Debug, Default)]
struct RequestedProbes {
    due: AtomicU64,
}

impl RequestedProbes {
    /// Whether a probe is due; the next one is not for a while then.
    fn take(&self, now: Duration) -> bool {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next = |due| (now >= due).then(|| now.saturating_add(MIN_PROBE_GAP_MS));
        self.due.fetch_update(Relaxed, Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_asks_for_a_probe_at_once_and_then_only_after_the_gap() {
        let (probes, gap) = (
            RequestedProbes::default(),
            Duration::from_millis(MIN_PROBE_GAP_MS),
        );
        assert!(probes.take(Duration::ZERO));
        assert!(!probes.take(gap.mul_f32(0.9)));
        assert!(probes.take(gap));
        assert!(!probes.take(gap.mul_f32(1.9)));
    }
}
