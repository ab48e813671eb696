//! Metrics by model: made at first use, removed with the last worker of the model.

use std::collections::{BTreeMap, HashMap};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};
use routing::PolicyKind;

use super::handles::{HTTP, REGULAR};
use super::registry::Maker;
use crate::endpoint::INFERENCE;

/// The model name of a worker that has not reported one.
pub(crate) const UNKNOWN_MODEL: &str = "unknown";

/// Every metric with a label `model` that is counted, and whose handles there are.
#[derive(Debug)]
pub(super) struct Models {
    requests: IntCounterVec,
    duration: HistogramVec,
    ttft: HistogramVec,
    pub(super) errors: IntCounterVec,
    selection: IntCounterVec,
    known: Mutex<BTreeMap<String, Weak<ModelMetrics>>>,
}

/// The handles of one model. Its series are removed when the last handle is dropped.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    /// The model.
    pub(crate) name: Arc<str>,
    models: Arc<Models>,
    /// Times a policy chose one of its workers, by policy.
    selections: [OnceLock<IntCounter>; PolicyKind::ALL.len()],
    /// Replies that broke off after their first byte.
    pub(crate) cut_replies: IntCounter,
    /// As in [`INFERENCE`].
    endpoints: [OnceLock<EndpointMetrics>; INFERENCE.len()],
}

/// The handles of one model at one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointMetrics {
    requests: [IntCounter; 2],
    /// Routing decision to the end of the reply.
    pub(crate) duration: Histogram,
    /// Routing decision to the first byte of a stream.
    pub(crate) ttft: Histogram,
}

impl Models {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let request = [
            "router_type",
            "backend_type",
            "connection_mode",
            "model",
            "endpoint",
        ];
        let with = |extra: &'static str| [&request[..], &[extra][..]].concat();
        Ok(Self {
            requests: maker.counter(
                "smg_router_requests_total",
                "requests sent to a worker",
                &with("streaming"),
            )?,
            duration: maker.seconds(
                "smg_router_request_duration_seconds",
                "routing decision to the end of the reply",
                &request,
            )?,
            ttft: maker.seconds(
                "smg_router_ttft_seconds",
                "routing decision to the first byte of a streamed reply",
                &["router_type", "backend_type", "model", "endpoint"],
            )?,
            errors: maker.counter(
                "smg_router_request_errors_total",
                "requests the gateway could not serve",
                &with("error_type"),
            )?,
            selection: maker.counter(
                "smg_worker_selection_total",
                "times a policy chose a worker",
                &["worker_type", "connection_mode", "model", "policy"],
            )?,
            known: Mutex::default(),
        })
    }

    /// The handles of one model.
    pub(super) fn handles(
        self: &Arc<Self>,
        model: &str,
        cut_replies: impl FnOnce() -> IntCounter,
    ) -> Arc<ModelMetrics> {
        let mut known = self.known();
        if let Some(handles) = known.get(model).and_then(Weak::upgrade) {
            return handles;
        }
        let handles = Arc::new(ModelMetrics {
            name: model.into(),
            models: Arc::clone(self),
            selections: std::array::from_fn(|_| OnceLock::new()),
            cut_replies: cut_replies(),
            endpoints: std::array::from_fn(|_| OnceLock::new()),
        });
        known.insert(model.to_owned(), Arc::downgrade(&handles));
        handles
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Weak<ModelMetrics>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelMetrics {
    /// A policy chose one of its workers.
    pub(crate) fn selected(&self, policy: PolicyKind) {
        let labels = [REGULAR, HTTP, &self.name, policy.as_str()];
        let known = self.selections.get(policy as usize);
        let selection = &self.models.selection;
        let counter = known.map(|it| it.get_or_init(|| selection.with_label_values(&labels)));
        counter.into_iter().for_each(IntCounter::inc);
    }

    /// By [`Inference::index`](crate::endpoint::Inference::index).
    pub(crate) fn endpoint(&self, index: usize) -> Option<&EndpointMetrics> {
        let (endpoint, row) = (self.endpoints.get(index)?, INFERENCE.get(index)?);
        Some(endpoint.get_or_init(|| self.of_endpoint(row.label)))
    }

    fn of_endpoint(&self, endpoint: &str) -> EndpointMetrics {
        let (models, model) = (&self.models, &*self.name);
        let labels = [HTTP, REGULAR, HTTP, model, endpoint];
        let requests = |streaming| {
            let labels = [HTTP, REGULAR, HTTP, model, endpoint, streaming];
            models.requests.with_label_values(&labels)
        };
        EndpointMetrics {
            requests: [requests("false"), requests("true")],
            duration: models.duration.with_label_values(&labels),
            ttft: models
                .ttft
                .with_label_values(&[HTTP, REGULAR, model, endpoint]),
        }
    }
}

impl Drop for ModelMetrics {
    fn drop(&mut self) {
        let mut known = self.models.known();
        let mine = known.get(&*self.name);
        // Newer handles of the same model may exist by now.
        if !mine.is_some_and(|mine| ptr::eq(mine.as_ptr(), self)) {
            return;
        }
        known.remove(&*self.name);
        if *self.name == *UNKNOWN_MODEL {
            // Also counts requests that reached no worker.
            return;
        }
        let models = &self.models;
        for counters in [&models.requests, &models.errors, &models.selection] {
            forget(counters, &self.name);
        }
        forget(&models.duration, &self.name);
        forget(&models.ttft, &self.name);
    }
}

impl EndpointMetrics {
    /// Requests sent to a worker.
    pub(crate) fn requests(&self, streaming: bool) -> &IntCounter {
        let [whole, streamed] = &self.requests;
        if streaming { streamed } else { whole }
    }
}

/// Removes the series of a model.
fn forget<B: MetricVecBuilder>(metric: &MetricVec<B>, model: &str) {
    for family in metric.collect() {
        for series in family.get_metric() {
            let labels = series.get_label().iter();
            let labels: HashMap<_, _> = labels.map(|it| (it.name(), it.value())).collect();
            if labels.get("model") == Some(&model) {
                // It was there just now.
                let _ = metric.remove(&labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;
    use crate::error::Error;

    fn series(metrics: &Metrics, model: &str) -> usize {
        let page = metrics.render().unwrap();
        page.matches(&format!("model=\"{model}\"")).count()
    }

    #[test]
    fn a_family_without_handles_is_not_shown() {
        let metrics = Metrics::new(None).unwrap();
        let (one, two) = (metrics.model("m"), metrics.model("m"));
        assert_eq!(series(&metrics, "m"), 0);
        one.endpoint(0).unwrap().requests(false).inc();
        one.selected(PolicyKind::Random);
        let error = Error::WorkerSpec("wrong".to_owned());
        metrics.request_error("m", "generate", &error);
        let told = series(&metrics, "m");
        assert!(told > 4);
        drop(one);
        assert_eq!(series(&metrics, "m"), told, "somebody still serves it");
        metrics.model("other").selected(PolicyKind::Random);
        assert_eq!(series(&metrics, "other"), 0);
        drop(two);
        assert_eq!(series(&metrics, "m"), 0);
        assert!(metrics.models.known().is_empty());
        let again = metrics.model("m");
        again.endpoint(0).unwrap().requests(false).inc();
        assert_eq!(series(&metrics, "m"), told - 2);
    }

    #[test]
    fn errors_without_a_worker_keep_their_series() {
        let metrics = Metrics::new(None).unwrap();
        let error = Error::WorkerSpec("wrong".to_owned());
        metrics.request_error(UNKNOWN_MODEL, "generate", &error);
        drop(metrics.model(UNKNOWN_MODEL));
        assert_eq!(series(&metrics, UNKNOWN_MODEL), 1);
    }
}
