//! The workers that may be given requests, at one moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::{Candidate, LearntRatio, Request, is_panicking};

use super::model_names::{ModelNames, Resolved};
use super::model_policies::{ModelPolicies, PolicyInstance};
use super::select_error::SelectError;
use super::text_ratios::TextRatios;
use crate::admission::WorkerQueue;
use crate::fleet::{Role, Worker};

/// Which requests a pool is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PoolKey {
    /// `None`: requests of any model.
    model: Option<String>,
    role: Role,
}

impl PoolKey {
    fn regular(model: Option<&str>) -> Self {
        Self {
            model: model.map(str::to_owned),
            role: Role::Regular,
        }
    }
}

/// The queues of all pools. They outlive snapshots, for requests wait in them.
#[derive(Debug, Default)]
pub(super) struct Queues(Mutex<BTreeMap<PoolKey, Arc<WorkerQueue>>>);

/// Workers that may serve the same requests, and the policy that chooses among them.
#[derive(Debug)]
pub(super) struct WorkerPool {
    pub(super) instance: PolicyInstance,
    /// As policies see them, by ascending slot.
    pub(super) selectable: Vec<Candidate>,
    /// Workers that get a request only when no other may have it.
    pub(super) fallback: Vec<Candidate>,
    /// Half of the breakers or more let nothing through: those workers are a last resort, too.
    pub(super) panicking: bool,
    /// Where requests wait while the workers are at their limit.
    pub(super) queue: Arc<WorkerQueue>,
    /// How long its tokens are.
    pub(super) text_ratio: Arc<LearntRatio>,
}

/// Every pool.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) any_model: WorkerPool,
    /// The model of all workers that have been ready, where that is one.
    only_model: Option<String>,
    /// Where several models are served, a pool for each.
    models: BTreeMap<String, WorkerPool>,
    /// For each adapter that some workers of its model lack, those that have it, by its name and
    /// then by model.
    adapters: BTreeMap<String, BTreeMap<String, WorkerPool>>,
    pub(super) names: ModelNames,
    /// All workers in it, by ascending slot.
    workers: Vec<Arc<Worker>>,
    /// Slots of the workers in slow start, and when each came back.
    pub(super) warming_up: Vec<(usize, Duration)>,
}

/// The ready workers, by what their state lets them have.
#[derive(Debug, Default)]
pub(super) struct AvailableWorkers {
    pub(super) selectable: Vec<Arc<Worker>>,
    /// Only when no other may have a request.
    pub(super) fallback: Vec<Arc<Worker>>,
    /// Their breakers let nothing through.
    pub(super) rejected: Vec<Arc<Worker>>,
}

impl Queues {
    fn of(&self, key: PoolKey) -> Arc<WorkerQueue> {
        Arc::clone(self.lock().entry(key).or_default())
    }

    /// Forgets the queues of models that are no longer served and have no waiters.
    fn retain(&self, models: &BTreeMap<String, WorkerPool>) {
        self.lock().retain(|key, queue| {
            let model = key.model.as_ref();
            model.is_none_or(|model| models.contains_key(model)) || queue.waiting() > 0
        });
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().values().map(|queue| queue.waiting()).sum()
    }

    /// Several workers may have become free.
    pub(super) fn wake_all(&self) {
        self.lock().values().for_each(|queue| queue.wake_all());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PoolKey, Arc<WorkerQueue>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerPool {
    /// The part of it that these workers are, by ascending slot. Requests wait in the same queue.
    fn subset(&self, slots: &[usize]) -> Self {
        let of = |candidates: &[Candidate]| {
            let among = |it: &&Candidate| slots.binary_search(&it.slot).is_ok();
            candidates.iter().filter(among).cloned().collect()
        };
        Self {
            instance: self.instance.clone(),
            selectable: of(&self.selectable),
            fallback: of(&self.fallback),
            panicking: self.panicking,
            queue: Arc::clone(&self.queue),
            text_ratio: Arc::clone(&self.text_ratio),
        }
    }
}

impl Snapshot {
    /// Of these workers, by ascending slot.
    pub(super) fn new(
        policies: &ModelPolicies,
        queues: &Queues,
        workers: &AvailableWorkers,
        names: ModelNames,
        text_ratios: &TextRatios,
    ) -> Self {
        let AvailableWorkers {
            selectable,
            fallback,
            rejected,
        } = workers;
        let pool = |model: Option<&str>, instance| {
            let of = |workers: &[Arc<Worker>]| {
                let serves = |worker: &&Arc<Worker>| {
                    let served = worker.endpoint.model_info.load();
                    model.is_none_or(|model| served.model == model)
                };
                let workers = workers.iter().filter(serves);
                workers.map(|worker| worker.candidate()).collect()
            };
            let (selectable, mut fallback): (Vec<_>, Vec<_>) = (of(selectable), of(fallback));
            let rejected: Vec<_> = of(rejected);
            // Envoy's panic mode: a fault that so many share is hardly each worker's own.
            let passing = selectable.len() + fallback.len();
            let panicking = is_panicking(rejected.len(), passing);
            if panicking {
                fallback.extend(rejected);
                fallback.sort_by_key(|candidate: &Candidate| candidate.slot);
            }
            WorkerPool {
                instance,
                selectable,
                fallback,
                panicking,
                queue: queues.of(PoolKey::regular(model)),
                text_ratio: text_ratios.of(model),
            }
        };
        let mut workers = [&**selectable, fallback, rejected].concat();
        workers.sort_by_key(|worker| worker.slot);
        let by_model = policies.by_model().into_iter();
        let models: BTreeMap<_, _> = by_model
            .map(|(model, instance)| {
                let pool = pool(Some(&model), instance);
                (model, pool)
            })
            .collect();
        queues.retain(&models);
        text_ratios.retain(|model| models.contains_key(model));
        let any_model = pool(None, policies.shared());
        let mut adapters: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
        for (name, model, slots) in names.partial_adapters() {
            let base = models.get(model).unwrap_or(&any_model);
            let by_model = adapters.entry(name.to_owned()).or_default();
            by_model.insert(model.to_owned(), base.subset(slots));
        }
        let recovered = |worker: &Arc<Worker>| Some((worker.slot, worker.recovered_at()?));
        Self {
            any_model,
            only_model: policies.only_model(),
            models,
            adapters,
            names,
            warming_up: selectable.iter().filter_map(recovered).collect(),
            workers,
        }
    }

    /// The pool for a request, by the model that it names.
    ///
    /// # Errors
    /// When it names none of several, one that is not served, or one without workers.
    pub(super) fn pool(&self, request: &Request<'_>) -> Result<&WorkerPool, SelectError> {
        self.pool_of(request.model, request.adapter)
    }

    /// The pool of a model, or of those of its workers that have an adapter.
    pub(super) fn pool_of(
        &self,
        model: Option<&str>,
        adapter: Option<&str>,
    ) -> Result<&WorkerPool, SelectError> {
        match self.names.resolve(model, adapter) {
            Resolved::Any => Ok(&self.any_model),
            Resolved::Model(name) if self.only_model.as_deref() == Some(name) => {
                Ok(&self.any_model)
            }
            Resolved::Model(name) => self.models.get(name).ok_or(SelectError::NoneReady),
            Resolved::Adapter { model, name } => {
                let by_model = self.adapters.get(name);
                let pool = by_model.and_then(|by_model| by_model.get(model));
                pool.ok_or(SelectError::NoneReady)
            }
            Resolved::Missing => Err(SelectError::MissingModel),
            Resolved::Unknown => Err(SelectError::UnknownModel),
        }
    }

    /// The worker in a slot.
    pub(super) fn worker(&self, slot: usize) -> Option<&Arc<Worker>> {
        let in_place = self.workers.get(slot).filter(|found| found.slot == slot);
        in_place.or_else(|| {
            let at = self
                .workers
                .binary_search_by_key(&slot, |worker| worker.slot);
            self.workers.get(at.ok()?)
        })
    }

    /// A request at a worker has ended: wakes the requests that may take its place.
    pub(super) fn wake_for(&self, worker: &Worker) {
        self.any_model.queue.slot_freed();
        if !self.models.is_empty() {
            let served = worker.endpoint.model_info.load();
            if let Some(pool) = self.models.get(&served.model) {
                pool.queue.slot_freed();
            }
        }
    }
}
