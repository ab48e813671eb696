//! Metrics by model: made at first use, removed with the last worker of the model.

use std::array;
use std::collections::{BTreeMap, HashMap};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{Histogram, IntCounter};
use routing::PolicyKind;

use super::endpoint::EndpointMetrics;
use super::labels::{Backend, HTTP, RUNTIME, WorkerType, clean};
use super::model_families::ModelFamilies;
use crate::endpoint::INFERENCE;
use crate::error::Error;

/// The model name of a worker that has not reported one.
pub(crate) const UNKNOWN_MODEL: &str = "unknown";

/// The models whose handles there are.
#[derive(Debug)]
pub(super) struct Models {
    families: Arc<ModelFamilies>,
    known: Mutex<BTreeMap<String, Weak<ModelMetrics>>>,
}

/// The handles of one model. Its series are removed when the last handle is dropped.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    /// The model, as labels have it.
    pub(crate) name: Arc<str>,
    models: Arc<Models>,
    /// Times a policy chose one of its workers, by the worker's part and by policy.
    selections: [[OnceLock<IntCounter>; PolicyKind::ALL.len()]; WorkerType::ALL.len()],
    prefill: OnceLock<Histogram>,
    /// As in [`INFERENCE`].
    endpoints: [[OnceLock<Box<EndpointMetrics>>; INFERENCE.len()]; Backend::COUNT],
}

impl Models {
    pub(super) fn new(families: ModelFamilies) -> Self {
        Self {
            families: Arc::new(families),
            known: Mutex::default(),
        }
    }

    /// The handles of one model.
    pub(super) fn handles(self: &Arc<Self>, model: &str) -> Arc<ModelMetrics> {
        let model = clean(model);
        let mut known = self.known();
        if let Some(handles) = known.get(&*model).and_then(Weak::upgrade) {
            return handles;
        }
        let handles = Arc::new(ModelMetrics {
            name: (*model).into(),
            models: Arc::clone(self),
            selections: Default::default(),
            prefill: OnceLock::new(),
            endpoints: array::from_fn(|_| array::from_fn(|_| OnceLock::new())),
        });
        known.insert(model.into_owned(), Arc::downgrade(&handles));
        handles
    }

    /// Every metric with a label `model` that is counted.
    pub(super) fn families(&self) -> &ModelFamilies {
        &self.families
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Weak<ModelMetrics>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelMetrics {
    /// A policy chose one of its workers.
    pub(crate) fn selected(&self, worker_type: WorkerType, policy: PolicyKind) {
        let of_type = self.selections.get(worker_type as usize);
        let Some(known) = of_type.and_then(|known| known.get(policy as usize)) else {
            return;
        };
        let counter = known.get_or_init(|| {
            let labels = [worker_type.as_str(), HTTP, &self.name, policy.as_str()];
            self.models.families.selection.with_label_values(&labels)
        });
        counter.inc();
    }

    /// A reply of a worker broke off after its first byte.
    pub(crate) fn cut_reply(&self, worker_type: WorkerType) {
        let labels = [worker_type.as_str(), HTTP, "stream_error"];
        self.models
            .families
            .worker_errors
            .with_label_values(&labels)
            .inc();
    }

    /// A request that the gateway could not serve.
    pub(crate) fn failed(&self, backend: Backend, endpoint: &str, error: &Error) {
        let families = &self.models.families;
        families.failed(backend, &self.name, endpoint, error);
    }

    /// How long prefill workers take, in seconds.
    pub(crate) fn prefill(&self) -> &Histogram {
        self.prefill.get_or_init(|| {
            let labels = [Backend::Pair.as_str(), &self.name, RUNTIME];
            self.models.families.prefill.with_label_values(&labels)
        })
    }

    /// By [`Inference::index`](crate::endpoint::Inference::index).
    pub(crate) fn endpoint(&self, backend: Backend, index: usize) -> Option<&EndpointMetrics> {
        let endpoints = self.endpoints.get(backend as usize)?;
        let (endpoint, row) = (endpoints.get(index)?, INFERENCE.get(index)?);
        let make = || EndpointMetrics::new(&self.models.families, &self.name, row.label, backend);
        Some(endpoint.get_or_init(|| Box::new(make())))
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
        let families = &self.models.families;
        for counters in [
            &families.requests,
            &families.tokens,
            &families.cached,
            &families.errors,
            &families.selection,
        ] {
            forget(counters, &self.name);
        }
        for times in [
            &families.duration,
            &families.ttft,
            &families.tpot,
            &families.generation,
            &families.prefill,
            &families.pair_ttft,
        ] {
            forget(times, &self.name);
        }
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
    use super::super::endpoint::CachedTokens;
    use super::*;

    fn series(metrics: &Metrics, model: &str) -> usize {
        let page = metrics.render().unwrap();
        page.matches(&format!("model=\"{model}\"")).count()
    }

    #[test]
    fn a_family_without_handles_is_not_shown() {
        let metrics = Metrics::new(None).unwrap();
        let (one, two) = (metrics.model("m"), metrics.model("m"));
        assert_eq!(series(&metrics, "m"), 0);
        one.endpoint(Backend::Regular, 0)
            .unwrap()
            .requests(false)
            .inc();
        one.selected(WorkerType::Regular, PolicyKind::Random);
        let error = Error::WorkerSpec("wrong".to_owned());
        one.failed(Backend::Regular, "generate", &error);
        one.prefill().observe(0.1);
        let pair = one.endpoint(Backend::Pair, 0).unwrap();
        pair.stream().first_event(0.1);
        pair.tokens().input.inc();
        pair.cached(CachedTokens::Reported).inc();
        let shown = series(&metrics, "m");
        assert!(shown > 4);
        drop(one);
        assert_eq!(series(&metrics, "m"), shown, "a worker still serves it");
        metrics
            .model("other")
            .selected(WorkerType::Regular, PolicyKind::Random);
        assert_eq!(series(&metrics, "other"), 0);
        drop(two);
        assert_eq!(series(&metrics, "m"), 0);
        assert!(metrics.models.known().is_empty());
        let again = metrics.model("m");
        again
            .endpoint(Backend::Regular, 0)
            .unwrap()
            .requests(false)
            .inc();
        assert!((1..shown).contains(&series(&metrics, "m")));
    }

    #[test]
    fn only_what_has_happened_has_series() {
        let metrics = Metrics::new(None).unwrap();
        let model = metrics.model("m");
        let endpoint = model.endpoint(Backend::Regular, 0).unwrap();
        endpoint.requests(false).inc();
        let page = metrics.render().unwrap();
        assert!(page.contains("streaming=\"false\"") && !page.contains("streaming=\"true\""));
        for absent in ["ttft", "tpot", "generation", "tokens", "smg_pd"] {
            assert!(!page.contains(absent), "{absent}: {page}");
        }
    }

    #[test]
    fn odd_model_names_cannot_break_the_page() {
        let metrics = Metrics::new(None).unwrap();
        let odd = metrics.model("a\r\u{2028}b");
        assert!(Arc::ptr_eq(&odd, &metrics.model("a__b")));
        odd.selected(WorkerType::Decode, PolicyKind::Random);
        assert_eq!(series(&metrics, "a__b"), 1);
    }

    #[test]
    fn errors_without_a_worker_keep_their_series() {
        let metrics = Metrics::new(None).unwrap();
        let error = Error::WorkerSpec("wrong".to_owned());
        metrics.request_error("generate", &error);
        drop(metrics.model(UNKNOWN_MODEL));
        assert_eq!(series(&metrics, UNKNOWN_MODEL), 1);
    }
}
