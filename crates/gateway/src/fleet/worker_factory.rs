//! Makes workers from what they are registered with.

use std::sync::Arc;
use std::time::Duration;

use routing::{Breaker, Health, Thresholds, Verdict};
use tracing::warn;

use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::model_info::{ModelInfo, Report, UNKNOWN_MODEL};
use super::outlier_stats::OutlierStats;
use super::slots::Slot;
use super::spec::{HealthSpec, WorkerSpec};
use super::status::WorkerState;
use super::worker::{NewWorker, Worker};
use crate::config::Live;
use crate::telemetry::Metrics;
use crate::upstream::{Client, ConnectionLimits};

/// Makes workers.
#[derive(Debug)]
pub(crate) struct WorkerFactory {
    pub(super) metrics: Arc<Metrics>,
    limits: Arc<ConnectionLimits>,
    /// Which treats its workers by options that may change.
    fleet: Arc<Fleet>,
    live: Live,
}

impl WorkerFactory {
    pub(crate) fn new(
        fleet: &Arc<Fleet>,
        live: &Live,
        limits: ConnectionLimits,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            limits: Arc::new(limits),
            fleet: Arc::clone(fleet),
            live: live.clone(),
        }
    }

    /// How long a worker may take to become ready.
    pub(super) fn startup_timeout(&self) -> Duration {
        self.live.health().startup_timeout
    }

    /// A worker as `spec` says; `joined_at` is set for one that joins a running gateway.
    pub(crate) fn build(
        &self,
        spec: WorkerSpec,
        slot: Slot,
        joined_at: Option<Duration>,
    ) -> Arc<Worker> {
        let url = spec.url.clone();
        let model = spec.model.as_deref().unwrap_or(UNKNOWN_MODEL).to_owned();
        let health = Health::new(self.thresholds(&spec.health));
        let (role, metrics) = (spec.role.unwrap_or_default(), self.metrics.model(&model));
        let info = ModelInfo::new(model, role, Report::default(), metrics);
        let client = Client::new(url.clone(), Arc::clone(&self.limits));
        let options = self.fleet.options();
        let breaker = options.breaker.map(Breaker::new);
        Arc::new(Worker::new(NewWorker {
            endpoint: Endpoint::new(spec, client, info, health),
            slot,
            rank: 0,
            state: WorkerState::new(Verdict::Pending, breaker, joined_at),
            metrics: self.metrics.of_worker(url.as_str()),
            outlier_stats: options.max_ejected.map(|_| OutlierStats::default()),
        }))
    }

    /// The data-parallel ranks of an endpoint that requests are routed to.
    pub(super) fn ranks_of(&self, endpoint: &Endpoint) -> usize {
        if self.fleet.options().ranks_apart {
            endpoint.model_info.load().ranks()
        } else {
            1
        }
    }

    /// A further data-parallel rank of an endpoint: a load, a breaker and figures of its own.
    pub(super) fn build_rank(
        &self,
        endpoint: &Arc<Endpoint>,
        slot: Slot,
        rank: usize,
        joined_at: Option<Duration>,
    ) -> Arc<Worker> {
        let options = self.fleet.options();
        let breaker = options.breaker.map(Breaker::new);
        let worker = Worker::new(NewWorker {
            endpoint: Arc::clone(endpoint),
            slot,
            rank,
            state: WorkerState::new(endpoint.verdict(), breaker, joined_at),
            metrics: self.metrics.of_worker(&format!("{}@{rank}", endpoint.url)),
            outlier_stats: options.max_ejected.map(|_| OutlierStats::default()),
        });
        worker.adopt_state();
        Arc::new(worker)
    }

    /// The thresholds of a worker's probes.
    pub(super) fn thresholds(&self, health: &HealthSpec) -> Thresholds {
        let usual = self.live.health().thresholds;
        Thresholds {
            failure: health.failure_threshold.unwrap_or(usual.failure),
            success: health.success_threshold.unwrap_or(usual.success),
        }
    }

    /// Warns of a worker without a key where clients need one.
    pub(super) fn warn_without_key(&self, spec: &WorkerSpec) {
        if self.fleet.options().clients_need_key && spec.key.is_none() {
            warn!(worker = %spec.url, "the gateway has an API key, this worker has none");
        }
    }
}
