//! The fleet as requests see it: a snapshot of the workers that may be given requests, the
//! policies that choose among them, and the queues in front of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::{ArcSwap, Guard};
use routing::prefix::{Correction, Export};
use routing::quota::SharedLimits;
use routing::sticky::KeyTable;
use routing::{
    Candidates, Params, Policy, PolicyKind, Ranked, Request, TextRatio, hash_url, is_near,
};

use super::model_names::ModelNames;
use super::model_policies::{MembersByModel, ModelMember, PolicyInstance};
use super::pool_summary::{PoolSummary, summarize};
use super::queues::Queues;
use super::reading::WorkerReading;
use super::role_policies::{RoleKinds, RolePolicies};
use super::select_error::SelectError;
use super::snapshot::{Contents, Snapshot, WorkerPool};
use super::token_stats::{ExpectedTokens, ModelTokenStats, TokenStats};
use super::zones::Zones;
use crate::admission::{QueueLimits, WorkerQueue};
use crate::config::{AdmissionSection, ModelMatching, ZoneSection};
use crate::fleet::{Fleet, FleetObserver, Role, UNKNOWN_MODEL, Worker};

/// The policies and the snapshot from which [`select`](super::select) picks a worker.
#[derive(Debug)]
pub(crate) struct Balancer {
    pub(crate) fleet: Arc<Fleet>,
    policies: RolePolicies,
    /// Rebuilt when an availability changes, read without a lock.
    snapshot: ArcSwap<Snapshot>,
    /// Held while the snapshot is rebuilt: an older view must not win.
    rebuilding: Mutex<()>,
    /// `None` where requests per worker are not limited.
    limits: ArcSwap<Option<QueueLimits>>,
    /// Whether there are any.
    limited: AtomicBool,
    queues: Queues,
    token_stats: ModelTokenStats,
    matching: ModelMatching,
    zones: ZoneSection,
}

impl Balancer {
    /// A balancer for the workers of `fleet`.
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        policies: RolePolicies,
        options: &AdmissionSection,
        matching: ModelMatching,
        zones: ZoneSection,
    ) -> Arc<Self> {
        let token_stats = ModelTokenStats::default();
        let limits = QueueLimits::new(options);
        let queues = Queues::new(queue_size(options));
        let snapshot = Snapshot::new(&policies, &queues, Contents::default(), &token_stats);
        let balancer = Arc::new(Self {
            fleet,
            policies,
            snapshot: ArcSwap::from_pointee(snapshot),
            rebuilding: Mutex::default(),
            limited: AtomicBool::new(limits.is_some()),
            limits: ArcSwap::from_pointee(limits),
            queues,
            token_stats,
            matching,
            zones,
        });
        let observer: Weak<Self> = Arc::downgrade(&balancer);
        balancer.fleet.observe_with(observer);
        balancer.membership_changed();
        balancer
    }

    /// The policy of the models that no label decides about.
    pub(crate) fn policy(&self) -> PolicyKind {
        self.policies.of(Role::Regular).kind()
    }

    /// Routing keys that policies remember, where any remembers some.
    pub(crate) fn sticky_keys(&self) -> Option<usize> {
        self.policies.keys()
    }

    /// Bytes of memory that indexes of prompts use, where a policy has one.
    pub(crate) fn index_bytes(&self) -> Option<usize> {
        self.policies.index_bytes()
    }

    /// Frees routing state that is no longer needed.
    pub(crate) fn sweep_policies(&self) {
        self.policies.sweep(self.fleet.now());
    }

    /// Forgets what a reply has disproved of a worker's cache.
    pub(super) fn correct(&self, correction: &Correction) {
        self.policies.correct(correction);
    }

    /// The limit on requests per worker, and on those that wait because of it.
    pub(crate) fn limits(&self) -> Option<QueueLimits> {
        // Nearly never set, and asked for several times per request.
        if !self.limited.load(Relaxed) {
            return None;
        }
        **self.limits.load()
    }

    /// Sets another limit. Requests that wait look again.
    pub(crate) fn set_limits(&self, options: &AdmissionSection) {
        let limits = QueueLimits::new(options);
        let limited = limits.is_some();
        self.queues.set_size(queue_size(options));
        self.limits.store(Arc::new(limits));
        self.limited.store(limited, Relaxed);
        self.queues.wake_all();
    }

    /// Shares the bounds of the queues with other gateways.
    pub(crate) fn share_queues(&self, limits: &Arc<SharedLimits>) {
        self.queues.share(limits);
    }

    /// Chooses by other policies. What is learnt stays where the kinds agree.
    pub(crate) fn set_policies(&self, kinds: RoleKinds, params: &Params) {
        self.policies.set(kinds, params);
        self.membership_changed();
    }

    /// Requests that wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        self.queues.waiting()
    }

    /// Where a request waits while its workers are at their limit.
    pub(crate) fn queue_of(&self, request: &Request<'_>) -> Arc<WorkerQueue> {
        let snapshot = self.snapshot.load();
        let pool = snapshot.some_pool(request.model, request.adapter);
        let pool = pool.unwrap_or(&snapshot.of(Role::Regular).any_model);
        Arc::clone(&pool.queue)
    }

    /// What is expected of the tokens of a request that allows an output of `longest`.
    pub(crate) fn expected_tokens(
        &self,
        request: &Request<'_>,
        longest: Option<u64>,
    ) -> ExpectedTokens {
        let snapshot = self.snapshot.load();
        let pool = snapshot.some_pool(request.model, request.adapter);
        let expected = |pool: &WorkerPool| {
            let TokenStats { ratio, outputs } = &*pool.token_stats;
            ExpectedTokens {
                text_ratio: ratio.get(),
                output: outputs.expected(request.output_key(), longest),
            }
        };
        pool.map_or_else(|_| ExpectedTokens::default(), expected)
    }

    /// Where it is learnt what the tokens of a request's model are like.
    pub(crate) fn token_stats(&self, request: &Request<'_>) -> Option<Arc<TokenStats>> {
        let snapshot = self.snapshot.load();
        let pool = snapshot.some_pool(request.model, request.adapter).ok()?;
        Some(Arc::clone(&pool.token_stats))
    }

    /// Whether some worker takes requests with fields of the gateway's only: it is in a pair, or a
    /// rank.
    pub(crate) fn adds_fields(&self) -> bool {
        self.snapshot.load().adds_fields
    }

    /// Whether a worker lists an adapter of this name.
    pub(crate) fn is_adapter(&self, name: &str) -> bool {
        self.snapshot.load().names.is_adapter(name)
    }

    /// Every model that is served, or that a worker is registered for, if a client with these names
    /// may use it.
    pub(crate) fn served_models(&self, allowed: Option<&BTreeSet<String>>) -> Vec<String> {
        let snapshot = self.snapshot.load();
        let names = &snapshot.names;
        let may =
            |model: &&String| allowed.is_none_or(|allowed| names.allows_model(allowed, model));
        names.models().iter().filter(may).cloned().collect()
    }

    /// Whether a client with these names may use a model, or the adapter of this `parent`.
    pub(crate) fn allows(
        &self,
        allowed: &BTreeSet<String>,
        id: &str,
        parent: Option<&str>,
    ) -> bool {
        let snapshot = self.snapshot.load();
        match parent {
            None => snapshot.names.allows_model(allowed, id),
            Some(model) => {
                let models = BTreeSet::from([model.to_owned()]);
                snapshot.names.allows_adapter(allowed, id, &models)
            }
        }
    }

    /// How many workers of a role a request might be given to.
    pub(crate) fn available_workers(&self, role: Role) -> usize {
        let snapshot = self.snapshot.load();
        let pool = &snapshot.of(role).any_model;
        pool.selectable.len() + pool.fallback.len()
    }

    /// The pools of workers.
    pub(crate) fn pools(&self) -> Vec<PoolSummary> {
        summarize(&self.snapshot.load())
    }

    /// The worker that is believed to have most of a prompt, if it has half of it.
    pub(crate) fn preferred(&self, request: &Request<'_>) -> Option<usize> {
        let tokens = request.prompt.tokens();
        let most = |_, ranked: &[Ranked<'_>]| {
            let most = ranked.iter().max_by_key(|it| it.matched_tokens)?;
            (tokens > 0 && 2 * most.matched_tokens >= tokens).then_some(most.candidate.slot)
        };
        self.rank(request, most).ok().flatten()
    }

    /// The zone of the worker in a slot.
    pub(crate) fn zone(&self, slot: usize) -> Option<String> {
        self.snapshot.load().zones.of(slot).map(str::to_owned)
    }

    /// Takes over a placement by another gateway.
    pub(crate) fn learn_placement(&self, blocks: &[u64], worker: &Worker) {
        let info = worker.endpoint.model_info.load();
        let snapshot = self.snapshot.load();
        let pools = snapshot.of(info.role);
        let pool = snapshot.pool_of(info.role, Some(&info.model), None);
        let pool = pool.unwrap_or(&pools.any_model);
        pool.instance.policy.learn(blocks, &worker.candidate());
    }

    /// The prefixes that policies have used last, to be sent to another gateway.
    pub(crate) fn export_prefixes(&self, most: usize) -> Vec<(Arc<dyn Policy>, Export)> {
        let snapshot = self.snapshot.load();
        let pools = Role::ALL
            .into_iter()
            .flat_map(|role| snapshot.of(role).each());
        let mut policies: Vec<Arc<dyn Policy>> = Vec::new();
        for policy in pools.map(|(_, pool)| &pool.instance.policy) {
            if !policies.iter().any(|known| Arc::ptr_eq(known, policy)) {
                policies.push(Arc::clone(policy));
            }
        }
        let exports = policies.into_iter().filter_map(|policy| {
            let export = policy.begin_export(most)?;
            Some((policy, export))
        });
        exports.collect()
    }

    /// The routing keys of each policy that remembers some, by what all gateways call its pool of
    /// workers: a role, and the model where there are several.
    pub(crate) fn key_tables(&self) -> Vec<(u64, Arc<KeyTable>)> {
        let snapshot = self.snapshot.load();
        let mut tables: Vec<(u64, Arc<KeyTable>)> = Vec::new();
        for role in Role::ALL {
            for (at, (model, pool)) in snapshot.of(role).each().enumerate() {
                let Some(table) = pool.instance.policy.key_table() else {
                    continue;
                };
                if tables.iter().any(|(_, known)| Arc::ptr_eq(known, table)) {
                    continue;
                }
                // The first is for requests of any model, whatever its name.
                let model = model.filter(|_| at > 0).unwrap_or_default();
                let name = format!("{}:{model}", role.as_str());
                tables.push((hash_url(&name), Arc::clone(table)));
            }
        }
        tables
    }

    /// A worker may have one more request: one that waits takes its place.
    pub(crate) fn wake_for(&self, worker: &Worker) {
        self.snapshot.load().wake_for(worker);
    }

    /// A request at a worker has ended.
    pub(super) fn request_finished(&self, worker: &Worker) {
        if self.limits().is_some() {
            self.wake_for(worker);
        }
        worker.request_finished();
    }

    /// What the policy would weigh, best first; where it has no costs, the ready workers in
    /// their order, all at cost 0.
    ///
    /// # Errors
    /// When the model that it names is not served.
    pub(crate) fn rank<T>(
        &self,
        request: &Request<'_>,
        use_ranked: impl FnOnce(PolicyKind, &[Ranked<'_>]) -> T,
    ) -> Result<T, SelectError> {
        let snapshot = self.snapshot.load();
        let pool = match snapshot.prompt_pool(request) {
            Err(SelectError::NoneReady) => return Ok(use_ranked(self.policy(), &[])),
            pool => pool?,
        };
        let PolicyInstance { kind, ref policy } = pool.instance;
        let Some(from) = Candidates::new(&pool.selectable) else {
            return Ok(use_ranked(kind, &[]));
        };
        let mut ranked = policy.rank(from, request);
        if ranked.is_empty() {
            let bare = |candidate| Ranked {
                candidate,
                matched_tokens: 0,
                queued_tokens: 0,
                cost: 0.0,
                passed_over: false,
            };
            ranked.extend(from.iter().map(bare));
        }
        if kind.zone_rule().leaves_out_far(&pool.selectable) {
            for far in ranked.iter_mut().filter(|it| !is_near(it.candidate)) {
                far.passed_over = true;
            }
            ranked.sort_by_key(|it| it.passed_over);
        }
        Ok(use_ranked(kind, &ranked))
    }

    pub(super) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// The policies at work.
    #[cfg(test)]
    pub(super) fn policies(&self) -> &super::model_policies::ModelPolicies {
        self.policies.of(Role::Regular)
    }

    /// Follows the fleet, with the members of policies where those have changed.
    fn rebuild(&self, change: Change) {
        let one_at_a_time = self
            .rebuilding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let workers: Vec<_> = self
            .fleet
            .workers()
            .iter()
            .map(WorkerReading::from)
            .collect();
        if change == Change::Membership {
            for role in Role::ALL {
                let in_role = workers.iter().filter(|it| it.info.role == role);
                self.set_members(role, &in_role.collect::<Vec<_>>());
            }
        }
        self.rebuild_snapshot(&workers);
        drop(one_at_a_time);
        if self.limits().is_some() {
            self.queues.wake_all();
        }
    }

    /// Sets the members of the policies of a role.
    fn set_members(&self, role: Role, workers: &[&WorkerReading]) {
        let mut members = MembersByModel::new();
        // A worker counts once it has been ready, and until it drains.
        for reading in workers.iter().filter(|it| it.availability.member) {
            let member = ModelMember {
                id: reading.worker.id,
                label: reading.config.spec.policy,
                candidate: reading.worker.candidate(),
            };
            match members.get_mut(&reading.info.model) {
                Some(of_model) => of_model.push(member),
                None => drop(members.insert(reading.info.model.clone(), vec![member])),
            }
        }
        // Workers of unknown model count only while no model is known.
        if members.len() > 1 {
            members.remove(UNKNOWN_MODEL);
        }
        let all = workers.iter().map(|reading| reading.worker.candidate());
        let all: Vec<_> = all.collect();
        self.policies.of(role).set_members(&all, &members);
    }

    fn rebuild_snapshot(&self, workers: &[WorkerReading]) {
        let contents = Contents {
            workers,
            names: ModelNames::new(self.matching, workers, &self.snapshot.load().names),
            zones: Zones::new(&self.zones, workers),
        };
        let snapshot = Snapshot::new(&self.policies, &self.queues, contents, &self.token_stats);
        let slots = workers.last().map_or(0, |reading| reading.worker.slot + 1);
        let mut capacity = vec![None; slots];
        for WorkerReading { worker, info, .. } in workers {
            let tokens = info.cache_tokens;
            worker.load.set_kv_capacity(tokens);
            capacity[worker.slot] = tokens.map(|tokens| {
                let pool = snapshot.pool_of(info.role, Some(&info.model), None);
                let ratio = pool.map_or(TextRatio::USUAL, |pool| pool.token_stats.ratio.get());
                ratio.to_bytes(tokens)
            });
        }
        self.snapshot.store(Arc::new(snapshot));
        self.policies.set_cache_sizes(&capacity);
    }
}

/// What has changed in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Membership,
    Availability,
}

impl FleetObserver for Balancer {
    fn membership_changed(&self) {
        self.rebuild(Change::Membership);
    }

    fn availability_changed(&self) {
        self.rebuild(Change::Availability);
    }
}

/// Requests that may wait for the workers of one pool, if these have a limit.
fn queue_size(options: &AdmissionSection) -> Option<usize> {
    QueueLimits::new(options).map(|_| options.queue_size)
}
