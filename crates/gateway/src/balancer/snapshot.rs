//! The workers that may be given requests, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::once;
use std::sync::Arc;
use std::time::Duration;

use routing::{Candidate, Request, is_panicking};

use super::model_names::{ModelNames, Resolved};
use super::model_policies::PolicyInstance;
use super::queues::{PoolKey, Queues};
use super::reading::{Access, WorkerReading};
use super::role_policies::RolePolicies;
use super::select_error::SelectError;
use super::slow_start::SlowStart;
use super::token_stats::{ModelTokenStats, TokenStats};
use super::zones::Zones;
use crate::admission::WorkerQueue;
use crate::config::WorkerUrl;
use crate::fleet::{Role, Worker};

/// Workers that may serve the same requests, and the policy that chooses among them.
#[derive(Debug)]
pub(super) struct WorkerPool {
    pub(super) instance: PolicyInstance,
    /// As policies see them, by ascending slot.
    pub(super) selectable: Vec<Candidate>,
    pub(super) slow_start: SlowStart,
    /// Workers that get a request only when no other may have it.
    pub(super) fallback: Vec<Candidate>,
    /// Half of the breakers or more let nothing through: those workers are a last resort, too.
    pub(super) panicking: bool,
    /// Where requests wait while the workers are at their limit.
    pub(super) queue: Arc<WorkerQueue>,
    /// What is learnt of its tokens.
    pub(super) token_stats: Arc<TokenStats>,
    /// The models of its workers.
    pub(super) models: BTreeSet<String>,
}

/// The worker that a client names, whatever its model, with all ranks of a URL; or none.
pub(super) type Target = Option<(Role, Vec<Candidate>)>;

/// The pools of one role.
#[derive(Debug)]
pub(super) struct RolePools {
    /// For requests of any model.
    pub(super) any_model: WorkerPool,
    /// The model of all workers that have been ready, where that is one.
    only_model: Option<String>,
    /// Where several models are served, a pool for each.
    models: BTreeMap<String, WorkerPool>,
    /// For each adapter that some workers of its model lack, those that have it, by its name and
    /// then by model.
    adapters: BTreeMap<String, BTreeMap<String, WorkerPool>>,
}

/// Every pool.
#[derive(Debug)]
pub(super) struct Snapshot {
    roles: [RolePools; Role::ALL.len()],
    /// Some worker takes part in pairs.
    pub(super) has_pairs: bool,
    /// Some worker takes part in pairs, or is a data-parallel rank.
    pub(super) adds_fields: bool,
    /// The transfer groups of workers by slot: a pair stays within one. Workers without one pair
    /// with each other.
    groups: BTreeMap<usize, String>,
    pub(super) zones: Zones,
    pub(super) names: ModelNames,
    /// All workers in it, by ascending slot.
    workers: Vec<Arc<Worker>>,
    /// Ascending slots of the workers in slow start, and when each came back.
    pub(super) warming_up: Vec<(usize, Duration)>,
}

/// What a snapshot is made of.
#[derive(Debug, Default)]
pub(super) struct Contents<'a> {
    /// By ascending slot.
    pub(super) workers: &'a [WorkerReading],
    pub(super) names: ModelNames,
    pub(super) zones: Zones,
}

impl WorkerPool {
    /// Whether it has no worker for a request.
    pub(super) fn is_empty(&self) -> bool {
        self.selectable.is_empty() && self.fallback.is_empty()
    }

    /// Its workers that take requests.
    pub(super) fn count(&self) -> usize {
        self.selectable.len() + self.fallback.len()
    }

    /// The part of it that these workers are, by ascending slot. Requests wait in the same queue.
    fn subset(&self, slots: &[usize]) -> Self {
        let of = |candidates: &[Candidate]| {
            let among = |it: &&Candidate| slots.binary_search(&it.slot).is_ok();
            candidates.iter().filter(among).cloned().collect()
        };
        let selectable: Vec<_> = of(&self.selectable);
        let warming_up = self.slow_start.warming_up.iter().map(|it| it.slot);
        Self {
            instance: self.instance.clone(),
            slow_start: SlowStart::new(&selectable, &warming_up.collect::<Vec<_>>()),
            selectable,
            fallback: of(&self.fallback),
            panicking: self.panicking,
            queue: Arc::clone(&self.queue),
            token_stats: Arc::clone(&self.token_stats),
            models: self.models.clone(),
        }
    }
}

impl RolePools {
    /// Of the available workers of a role, by ascending slot.
    fn new(
        parts: &Parts<'_>,
        role: Role,
        available: &[&WorkerReading],
        names: &ModelNames,
    ) -> Self {
        let policies = parts.policies.of(role);
        let by_model = policies.by_model();
        let mut of_model: BTreeMap<&str, Vec<&WorkerReading>> = BTreeMap::new();
        if !by_model.is_empty() {
            for reading in available {
                of_model
                    .entry(&reading.info.model)
                    .or_default()
                    .push(reading);
            }
        }
        let models = by_model.into_iter().map(|(model, instance)| {
            let workers = of_model.remove(&*model).unwrap_or_default();
            let pool = parts.pool(role, Some(&model), instance, &workers);
            (model, pool)
        });
        let models: BTreeMap<_, _> = models.collect();
        let any_model = parts.pool(role, None, policies.shared(), available);
        let mut adapters: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
        for (name, model, slots) in names.partial_adapters() {
            let base = models.get(model).unwrap_or(&any_model);
            let by_model = adapters.entry(name.to_owned()).or_default();
            by_model.insert(model.to_owned(), base.subset(slots));
        }
        Self {
            any_model,
            only_model: policies.only_model(),
            models,
            adapters,
        }
    }

    /// The pool that a request's names stand for.
    pub(super) fn pool(&self, resolved: Resolved<'_>) -> Result<&WorkerPool, SelectError> {
        match resolved {
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

    /// Its pools by model. That for requests of any model comes first, with the name of the only
    /// model if there is but one.
    pub(super) fn each(&self) -> impl Iterator<Item = (Option<&str>, &WorkerPool)> {
        let any = (self.only_model.as_deref(), &self.any_model);
        let models = self.models.iter();
        once(any).chain(models.map(|(name, pool)| (Some(name.as_str()), pool)))
    }

    fn serves(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }
}

/// What pools are made of besides workers.
struct Parts<'a> {
    policies: &'a RolePolicies,
    queues: &'a Queues,
    token_stats: &'a ModelTokenStats,
    zones: &'a Zones,
}

impl Parts<'_> {
    fn pool(
        &self,
        role: Role,
        model: Option<&str>,
        instance: PolicyInstance,
        workers: &[&WorkerReading],
    ) -> WorkerPool {
        let mut selectable: Vec<Candidate> = Vec::with_capacity(workers.len());
        let (mut fallback, mut rejected) = (Vec::new(), Vec::new());
        let mut warming_up = Vec::new();
        let mut models: BTreeSet<&str> = BTreeSet::new();
        let mut last_model: Option<&str> = None;
        for reading in workers {
            let of_access = match reading.access() {
                Some(Access::Selectable) => &mut selectable,
                Some(Access::Fallback) => &mut fallback,
                Some(Access::Rejected) => &mut rejected,
                None => continue,
            };
            of_access.push(reading.worker.candidate());
            if reading.is_warming_up() {
                warming_up.push(reading.worker.slot);
            }
            // Hundreds of workers have one model.
            if last_model.replace(&*reading.info.model) != Some(&reading.info.model) {
                models.insert(&reading.info.model);
            }
        }
        if self.zones.are_used() {
            for candidates in [&mut selectable, &mut fallback, &mut rejected] {
                self.zones.price(candidates);
            }
        }
        // Envoy's panic mode: a fault that so many share is hardly each worker's own.
        let passing = selectable.len() + fallback.len();
        let panicking = is_panicking(rejected.len(), passing);
        if panicking {
            fallback.extend(rejected);
            fallback.sort_by_key(|candidate: &Candidate| candidate.slot);
        }
        WorkerPool {
            instance,
            slow_start: SlowStart::new(&selectable, &warming_up),
            selectable,
            fallback,
            panicking,
            queue: self.queues.of(PoolKey::of_queue(model, role)),
            token_stats: self.token_stats.of(model),
            models: models.into_iter().map(str::to_owned).collect(),
        }
    }
}

impl Snapshot {
    pub(super) fn new(
        policies: &RolePolicies,
        queues: &Queues,
        contents: Contents<'_>,
        token_stats: &ModelTokenStats,
    ) -> Self {
        let Contents {
            workers,
            names,
            zones,
        } = contents;
        let parts = Parts {
            policies,
            queues,
            token_stats,
            zones: &zones,
        };
        let mut all = Vec::with_capacity(workers.len());
        all.extend(workers.iter().filter(|it| it.access().is_some()));
        let roles = Role::ALL.map(|role| {
            let in_role = all.iter().copied();
            let in_role = in_role.filter(|reading| reading.info.role == role);
            RolePools::new(&parts, role, &in_role.collect::<Vec<_>>(), &names)
        });
        let serves = |model: &str| roles.iter().any(|pools| pools.serves(model));
        queues.retain(serves);
        token_stats.retain(serves);
        let recovered = |reading: &&WorkerReading| {
            let recovered_at = reading.availability.recovered_at;
            let recovered_at = recovered_at.filter(|_| reading.is_warming_up())?;
            Some((reading.worker.slot, recovered_at))
        };
        let has_pairs = all.iter().any(|reading| reading.info.role != Role::Regular);
        Self {
            roles,
            has_pairs,
            adds_fields: has_pairs || all.iter().any(|reading| reading.worker.rank().is_some()),
            groups: all
                .iter()
                .filter_map(|reading| transfer_group(reading))
                .collect(),
            zones,
            names,
            warming_up: all.iter().filter_map(recovered).collect(),
            workers: all
                .iter()
                .map(|reading| Arc::clone(&reading.worker))
                .collect(),
        }
    }

    /// The pools of a role.
    pub(super) fn of(&self, role: Role) -> &RolePools {
        let [regular, prefill, decode] = &self.roles;
        match role {
            Role::Regular => regular,
            Role::Prefill => prefill,
            Role::Decode => decode,
        }
    }

    /// The pool of a role for a request, by the model that it names.
    ///
    /// # Errors
    /// When it names none of several, one that is not served, or one without workers of the role.
    pub(super) fn pool(
        &self,
        role: Role,
        request: &Request<'_>,
    ) -> Result<&WorkerPool, SelectError> {
        self.pool_of(role, request.model, request.adapter)
    }

    /// The pool of a role for a model, or for those of its workers that have an adapter.
    pub(super) fn pool_of(
        &self,
        role: Role,
        model: Option<&str>,
        adapter: Option<&str>,
    ) -> Result<&WorkerPool, SelectError> {
        self.of(role).pool(self.names.resolve(model, adapter))
    }

    /// The pool of a model, of whichever role has one: the first one with workers.
    pub(super) fn some_pool(
        &self,
        model: Option<&str>,
        adapter: Option<&str>,
    ) -> Result<&WorkerPool, SelectError> {
        let regular = self.pool_of(Role::Regular, model, adapter);
        if !self.has_pairs || regular.is_ok_and(|pool| !pool.is_empty()) {
            return regular;
        }
        let decode = self.pool_of(Role::Decode, model, adapter);
        decode.or(regular)
    }

    /// The pool whose policy weighs the prompts of a model.
    pub(super) fn prompt_pool(&self, request: &Request<'_>) -> Result<&WorkerPool, SelectError> {
        let regular = self.pool(Role::Regular, request);
        if !self.has_pairs || regular.is_ok_and(|pool| !pool.is_empty()) {
            return regular;
        }
        self.pool(Role::Prefill, request).or(regular)
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

    /// Whether the worker in a slot is in slow start.
    pub(super) fn is_warming_up(&self, slot: usize) -> bool {
        let found = self
            .warming_up
            .binary_search_by_key(&slot, |(slot, _)| *slot);
        found.is_ok()
    }

    /// Whether some workers must not be paired with some others.
    pub(super) fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The transfer group of the worker in a slot.
    pub(super) fn group(&self, slot: usize) -> Option<&str> {
        self.groups.get(&slot).map(String::as_str)
    }

    /// The worker that a client names by index, URL, name or id; of a URL all ranks.
    pub(super) fn find(&self, target: &str) -> Target {
        let index = target.parse().ok();
        let url = index.is_none().then(|| WorkerUrl::parse(target).ok());
        let url = url.flatten();
        let named = |candidate: &&Candidate| {
            let worker = self.worker(candidate.slot);
            index == Some(candidate.slot)
                || *candidate.url == *target
                || worker.is_some_and(|worker| {
                    url.as_ref() == Some(worker.url()) || worker.has_id(target)
                })
        };
        Role::ALL.into_iter().find_map(|role| {
            let pool = &self.of(role).any_model;
            let known = pool.selectable.iter().chain(&pool.fallback);
            let mut found: Vec<_> = known.filter(named).cloned().collect();
            found.sort_by_key(|candidate| candidate.slot);
            (!found.is_empty()).then_some((role, found))
        })
    }

    /// A request at a worker has ended: wakes the requests that may take its place.
    pub(super) fn wake_for(&self, worker: &Worker) {
        let served = worker.endpoint.model_info.load();
        // Where a model has regular workers and pairs, its requests wait for either in one queue.
        for pools in [self.of(Role::Regular), self.of(Role::Decode)] {
            pools.any_model.queue.slot_freed(worker.slot);
            if let Some(pool) = pools.models.get(&served.model) {
                pool.queue.slot_freed(worker.slot);
            }
            if !self.has_pairs {
                break;
            }
        }
    }
}

fn transfer_group(reading: &WorkerReading) -> Option<(usize, String)> {
    let group = reading.config.transfer_group.clone()?;
    Some((reading.worker.slot, group))
}
