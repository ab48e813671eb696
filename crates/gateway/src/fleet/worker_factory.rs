//! Makes workers from what they are registered with.

use std::sync::Arc;
use std::time::Duration;

use routing::{Breaker, BreakerRules, Health, Thresholds, Verdict};
use tracing::warn;

use super::endpoint::Endpoint;
use super::model_info::{ModelInfo, Report, UNKNOWN_MODEL};
use super::outlier_stats::OutlierStats;
use super::slots::Slot;
use super::spec::{HealthSpec, WorkerSpec};
use super::status::WorkerState;
use super::worker::{NewWorker, Worker};
use crate::config::{FleetSection, HealthSection};
use crate::telemetry::Metrics;
use crate::upstream::{Client, ConnectionLimits};

/// Makes workers.
#[derive(Debug)]
pub(crate) struct WorkerFactory {
    pub(super) metrics: Arc<Metrics>,
    limits: Arc<ConnectionLimits>,
    thresholds: Thresholds,
    breaker: Option<BreakerRules>,
    compares_workers: bool,
    pub(super) startup_timeout: Duration,
    clients_need_key: bool,
    /// Requests are routed to ranks.
    ranks_apart: bool,
}

impl WorkerFactory {
    pub(crate) fn new(
        fleet: &FleetSection,
        health: &HealthSection,
        limits: ConnectionLimits,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            limits: Arc::new(limits),
            thresholds: health.thresholds,
            breaker: fleet.breaker,
            compares_workers: fleet.max_ejected.is_some(),
            startup_timeout: health.startup_timeout,
            clients_need_key: fleet.clients_need_key,
            ranks_apart: fleet.ranks_apart,
        }
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
        let info = ModelInfo {
            metrics: self.metrics.model(&model),
            report: Report::default(),
            role: spec.role.unwrap_or_default(),
            model,
        };
        let client = Client::new(url.clone(), Arc::clone(&self.limits));
        let breaker = self.breaker.map(Breaker::new);
        Arc::new(Worker::new(NewWorker {
            endpoint: Endpoint::new(spec, client, info, health),
            slot,
            rank: 0,
            state: WorkerState::new(Verdict::Pending, breaker, joined_at),
            metrics: self.metrics.of_worker(url.as_str()),
            outlier_stats: self.compares_workers.then(OutlierStats::default),
        }))
    }

    /// The data-parallel ranks of an endpoint that requests are routed to.
    pub(super) fn ranks_of(&self, endpoint: &Endpoint) -> usize {
        if self.ranks_apart {
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
        let breaker = self.breaker.map(Breaker::new);
        let worker = Worker::new(NewWorker {
            endpoint: Arc::clone(endpoint),
            slot,
            rank,
            state: WorkerState::new(endpoint.verdict(), breaker, joined_at),
            metrics: self.metrics.of_worker(&format!("{}@{rank}", endpoint.url)),
            outlier_stats: self.compares_workers.then(OutlierStats::default),
        });
        worker.adopt_state();
        Arc::new(worker)
    }

    /// The thresholds of a worker's probes.
    pub(super) fn thresholds(&self, health: &HealthSpec) -> Thresholds {
        Thresholds {
            failure: health.failure_threshold.unwrap_or(self.thresholds.failure),
            success: health.success_threshold.unwrap_or(self.thresholds.success),
        }
    }

    /// Warns of a worker without a key where clients need one.
    pub(super) fn warn_without_key(&self, spec: &WorkerSpec) {
        if self.clients_need_key && spec.key.is_none() {
            warn!(worker = %spec.url, "the gateway has an API key, this worker has none");
        }
    }
}
