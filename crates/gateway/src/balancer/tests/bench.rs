//! A fleet whose probes and models a test decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use routing::{PolicyKind, Probe};
use serde_json::json;

use super::super::{Balancer, RolePolicies};
use crate::config::{
    AdmissionSection, ConnectionSection, FleetSection, Live, ModelMatching, Options, WorkerUrl,
    ZoneSection,
};
use crate::fleet::{
    Fleet, Report, Worker, WorkerFactory, WorkerSpec, advance_timers, finish_drain, record_probe,
    set_model, start_drain,
};
use crate::telemetry::Metrics;
use crate::upstream::ConnectionLimits;

pub(super) struct Bench {
    pub(super) balancer: Arc<Balancer>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) metrics: Arc<Metrics>,
    factory: WorkerFactory,
}

fn spec(name: &str) -> WorkerSpec {
    WorkerSpec::new(WorkerUrl::parse(&format!("http://{name}:1")).unwrap())
}

impl Bench {
    /// A fleet of so many configured workers, none of which is ready.
    pub(super) fn new(count: usize, policies: RolePolicies, options: FleetSection) -> Self {
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let defaults = Options {
            health_failure_threshold: 1,
            health_success_threshold: 1,
            ..Options::default()
        };
        let limits = ConnectionLimits::new(&ConnectionSection::from(&defaults), 1);
        let fleet = Fleet::new(options);
        let factory = WorkerFactory::new(&fleet, &Live::from(&defaults), limits, &metrics);
        for slot in 0..count {
            fleet.add(|at| factory.build(spec(&format!("w{slot}")), at, None));
        }
        let admission = AdmissionSection::from(&defaults);
        Self {
            balancer: Balancer::new(
                Arc::clone(&fleet),
                policies,
                &admission,
                ModelMatching::Auto,
                ZoneSection::default(),
            ),
            fleet,
            metrics,
            factory,
        }
    }

    pub(super) fn worker(&self, slot: usize) -> Arc<Worker> {
        Arc::clone(&self.fleet.workers()[slot])
    }

    /// A worker joins and becomes ready.
    pub(super) fn join(&self, name: &str) -> Arc<Worker> {
        let now = self.fleet.now();
        let build = |slot| self.factory.build(spec(name), slot, Some(now));
        let worker = self.fleet.add(build);
        record_probe(&self.fleet, &worker.endpoint, Probe::Passed);
        worker
    }

    pub(super) async fn remove(&self, worker: &Arc<Worker>) {
        start_drain(&self.fleet, worker);
        finish_drain(&self.fleet, worker).await;
    }

    pub(super) fn probe(&self, slot: usize, result: Probe) {
        record_probe(&self.fleet, &self.worker(slot).endpoint, result);
    }

    /// A worker reports which model it serves.
    pub(super) fn report(&self, worker: &Worker, model: &str) {
        let labels = BTreeMap::from([("model_id".to_owned(), model.to_owned())]);
        let report = Report::new(labels, None);
        set_model(&self.fleet, &worker.endpoint, Some(report), &self.metrics);
    }

    /// A worker reports its model, and an adapter of it.
    pub(super) fn report_adapter(&self, slot: usize, model: &str, adapter: &str) {
        let cards = json!({"data": [{"id": model}, {"id": adapter, "parent": model}]});
        let labels = BTreeMap::from([("model_id".to_owned(), model.to_owned())]);
        let report = Report::new(labels, cards.as_object());
        let endpoint = &self.worker(slot).endpoint;
        set_model(&self.fleet, endpoint, Some(report), &self.metrics);
    }

    /// A worker reports its model, and the path that it was loaded from.
    pub(super) fn report_path(&self, slot: usize, model: &str, path: &str) {
        let labels = [("served_model_name", model), ("model_path", path)];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let report = Report::new(BTreeMap::from(labels), None);
        let endpoint = &self.worker(slot).endpoint;
        set_model(&self.fleet, endpoint, Some(report), &self.metrics);
    }

    /// A worker is registered for a model.
    pub(super) fn register(&self, slot: usize, model: &str) {
        let worker = self.worker(slot);
        let mut spec = worker.endpoint.config.load().spec.clone();
        spec.model = Some(model.to_owned());
        worker.endpoint.config.store(Arc::new(spec.into()));
        set_model(&self.fleet, &worker.endpoint, None, &self.metrics);
    }

    /// Changes the policy label of a worker.
    pub(super) fn relabel(&self, slot: usize, label: Option<PolicyKind>) {
        let worker = self.worker(slot);
        let mut spec = worker.endpoint.config.load().spec.clone();
        spec.policy = label;
        worker.endpoint.config.store(Arc::new(spec.into()));
        set_model(&self.fleet, &worker.endpoint, None, &self.metrics);
    }

    /// Time passes for every worker.
    pub(super) fn advance(&self) {
        advance_timers(&self.fleet);
    }
}
