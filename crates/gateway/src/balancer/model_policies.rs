//! Policy instances: one for requests of any model, and one for each model.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::prefix::Correction;
use routing::{Candidate, Params, Policy, PolicyKind};
use uuid::Uuid;

type PolicyFactory = dyn Fn(PolicyKind) -> Box<dyn Policy> + Send + Sync;

/// A policy with its state.
#[derive(Clone, Debug)]
pub(super) struct PolicyInstance {
    pub(super) kind: PolicyKind,
    pub(super) policy: Arc<dyn Policy>,
}

/// A worker that serves a model.
#[derive(Debug)]
pub(super) struct ModelMember {
    pub(super) id: Uuid,
    /// The policy it is labelled with.
    pub(super) label: Option<PolicyKind>,
    pub(super) candidate: Candidate,
}

/// The workers of each model, by ascending slot.
pub(super) type MembersByModel = BTreeMap<String, Vec<ModelMember>>;

/// A model, and the policy that was chosen for it.
#[derive(Debug)]
struct Model {
    /// The worker whose label decides: the first. When it leaves, the policy stays until the
    /// next worker's label changes.
    label_owner: Uuid,
    label: Option<PolicyKind>,
    kind: PolicyKind,
    assignment: Assignment,
}

/// Which instance a model uses.
#[derive(Debug, Default)]
enum Assignment {
    #[default]
    None,
    /// The one for requests of any model: no other model is served.
    Shared,
    Dedicated(PolicyInstance),
}

struct Active {
    /// Unless a label asks for another.
    kind: PolicyKind,
    factory: Box<PolicyFactory>,
    /// Workers, ready or not.
    workers: usize,
    shared: PolicyInstance,
    models: BTreeMap<String, Model>,
}

/// One instance for requests of any model and, where several models are served or a label asks
/// for it, one for each model: prompts of one model say nothing about caches of another.
#[derive(Debug)]
pub(crate) struct ModelPolicies {
    active: Mutex<Active>,
}

impl fmt::Debug for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Active")
            .field("shared", &self.shared)
            .field("models", &self.models)
            .finish_non_exhaustive()
    }
}

impl ModelPolicies {
    /// Instances of `kind`, unless a label asks for another.
    pub(crate) fn new(
        kind: PolicyKind,
        factory: impl Fn(PolicyKind) -> Box<dyn Policy> + Send + Sync + 'static,
    ) -> Self {
        let policy = factory(kind).into();
        let shared = PolicyInstance { kind, policy };
        let models = BTreeMap::new();
        Self {
            active: Mutex::new(Active {
                kind,
                factory: Box::new(factory),
                workers: 0,
                shared,
                models,
            }),
        }
    }

    /// The kind of the models that no label decides about.
    pub(super) fn kind(&self) -> PolicyKind {
        self.active().kind
    }

    /// Chooses by another kind where no label decides, and all kinds by these tunables. Instances
    /// whose kind stays keep what they have learnt. The members are to be set afterwards.
    pub(super) fn set(&self, kind: PolicyKind, params: &Params) {
        let mut active = self.active();
        let of_params = params.clone();
        active.kind = kind;
        active.factory = Box::new(move |kind| kind.build(&of_params));
        active.shared.tune(params);
        let Active { shared, models, .. } = &mut *active;
        for model in models.values_mut() {
            if let Assignment::Dedicated(dedicated) = &mut model.assignment {
                dedicated.tune(params);
            }
            let wanted = model.label.unwrap_or(kind);
            if model.kind != wanted {
                (model.kind, model.assignment) = (wanted, Assignment::None);
            } else if shared.kind != kind && matches!(model.assignment, Assignment::Shared) {
                // Its label asks for the kind that the others give up.
                model.assignment = Assignment::Dedicated(shared.clone());
            }
        }
        if active.shared.kind != kind {
            active.shared = active.instance(kind);
        }
    }

    /// Sets the members of every instance, ready or not; makes instances for new models and
    /// drops those of models that are no longer served.
    pub(super) fn set_members(&self, all: &[Candidate], members: &MembersByModel) {
        let mut active = self.active();
        if mem::replace(&mut active.workers, all.len()) == 0 && all.is_empty() {
            return;
        }
        active.assign_kinds(members);
        active.assign(members.len());
        active.shared.policy.set_members(all);
        for (name, by) in members {
            let dedicated = active.models.get(name).and_then(Model::dedicated);
            let Some(PolicyInstance { policy, .. }) = dedicated else {
                continue;
            };
            if members.len() == 1 {
                // Every worker serves it, whatever name a request gives.
                policy.set_members(all);
            } else {
                let those: Vec<_> = by.iter().map(|server| server.candidate.clone()).collect();
                policy.set_members(&those);
            }
        }
    }

    /// The instance for requests of any model.
    pub(super) fn shared(&self) -> PolicyInstance {
        let active = self.active();
        let only = active.models.values().next();
        match only.map(|model| &model.assignment) {
            Some(Assignment::Dedicated(dedicated)) if active.models.len() == 1 => dedicated.clone(),
            _ => active.shared.clone(),
        }
    }

    /// The model, where only one is served.
    pub(super) fn only_model(&self) -> Option<String> {
        let active = self.active();
        let only = active.models.keys().next();
        only.filter(|_| active.models.len() == 1).cloned()
    }

    /// The instance of each model, where several are served.
    pub(super) fn by_model(&self) -> BTreeMap<String, PolicyInstance> {
        let active = self.active();
        let models = &active.models;
        let several = models.iter().filter(|_| models.len() > 1);
        several
            .filter_map(|(name, model)| Some((name.clone(), model.dedicated()?.clone())))
            .collect()
    }

    /// Sets the bytes of prompts that each worker's cache holds, by slot, where known.
    pub(super) fn set_cache_sizes(&self, bytes_by_slot: &[Option<u64>]) {
        self.each(|policy| policy.set_cache_sizes(bytes_by_slot));
    }

    /// Forgets what a reply has disproved of a worker's cache.
    pub(super) fn correct(&self, correction: &Correction) {
        self.each(|policy| policy.correct(correction));
    }

    /// Routing keys that all instances remember, where any does.
    pub(super) fn keys(&self) -> Option<usize> {
        let instances = self.all().into_iter();
        let keys = instances.filter_map(|it| Some(it.policy.key_table()?.count()));
        keys.reduce(|one, other| one + other)
    }

    /// Bytes of all instances' indexes of prompts, where any has one.
    pub(super) fn index_bytes(&self) -> Option<usize> {
        let instances = self.all().into_iter();
        let bytes = instances.filter_map(|instance| instance.policy.index_bytes());
        bytes.reduce(|one, other| one + other)
    }

    /// Frees routing state that is no longer needed.
    pub(super) fn sweep(&self, now: Duration) {
        self.each(|policy| policy.sweep(now));
    }

    fn each(&self, call: impl Fn(&dyn Policy)) {
        for instance in self.all() {
            call(&*instance.policy);
        }
    }

    /// Every instance; a copy, for calls to them may take long.
    pub(super) fn all(&self) -> Vec<PolicyInstance> {
        let active = self.active();
        let dedicated = active.models.values().filter_map(Model::dedicated);
        dedicated.chain([&active.shared]).cloned().collect()
    }

    fn active(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Active {
    /// Chooses the policy of each model.
    fn assign_kinds(&mut self, members: &MembersByModel) {
        let before = mem::take(&mut self.models).into_iter();
        let (mut stay, mut departed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            before.partition(|(name, _)| members.contains_key(name));
        for (name, by) in members {
            let Some(first) = by.first() else { continue };
            let known = stay.remove(name).or_else(|| renamed(&mut departed, by));
            let mut model = known.unwrap_or(Model {
                label_owner: first.id,
                label: first.label,
                kind: first.label.unwrap_or(self.kind),
                assignment: Assignment::None,
            });
            let label_owner = by.iter().find(|server| server.id == model.label_owner);
            if label_owner.is_none() {
                // The decision stands until the label of the next worker changes.
                (model.label_owner, model.label) = (first.id, first.label);
            }
            let label = label_owner.unwrap_or(first).label;
            if label != model.label {
                model.label = label;
                self.change(&mut model, label.unwrap_or(self.kind));
            }
            self.models.insert(name.clone(), model);
        }
    }

    /// Gives a model another policy, which begins without state.
    fn change(&mut self, model: &mut Model, kind: PolicyKind) {
        if model.kind == kind {
            return;
        }
        model.kind = kind;
        if let Assignment::Shared = mem::take(&mut model.assignment) {
            self.shared = self.instance(self.kind);
        }
    }

    /// Gives every model its instance. State is kept: when a second model joins, the first takes
    /// the shared instance along; when only one is left, its own becomes the shared one.
    fn assign(&mut self, served: usize) {
        let Self {
            kind,
            factory,
            shared,
            models,
            ..
        } = self;
        for model in models.values_mut() {
            let shares = served == 1 && model.kind == *kind;
            model.assignment = match (mem::take(&mut model.assignment), shares) {
                (Assignment::Dedicated(dedicated), true) => {
                    *shared = dedicated;
                    Assignment::Shared
                }
                (_, true) => Assignment::Shared,
                (Assignment::Shared, false) => {
                    Assignment::Dedicated(mem::replace(shared, PolicyInstance::new(*kind, factory)))
                }
                (Assignment::None, false) => {
                    Assignment::Dedicated(PolicyInstance::new(model.kind, factory))
                }
                (dedicated, false) => dedicated,
            };
        }
    }

    fn instance(&self, kind: PolicyKind) -> PolicyInstance {
        PolicyInstance::new(kind, &*self.factory)
    }
}

impl PolicyInstance {
    fn new(kind: PolicyKind, factory: &PolicyFactory) -> Self {
        let policy = factory(kind).into();
        Self { kind, policy }
    }

    /// Decides by other tunables, with what it has learnt.
    fn tune(&mut self, params: &Params) {
        if let Some(tuned) = self.policy.with_params(params) {
            self.policy = tuned.into();
        }
    }
}

impl Model {
    fn dedicated(&self) -> Option<&PolicyInstance> {
        match &self.assignment {
            Assignment::Dedicated(dedicated) => Some(dedicated),
            Assignment::None | Assignment::Shared => None,
        }
    }
}

/// The model without workers whose label owner is among these: it has been renamed.
fn renamed(departed: &mut BTreeMap<String, Model>, by: &[ModelMember]) -> Option<Model> {
    let decides = |model: &Model| by.iter().any(|server| server.id == model.label_owner);
    let (name, _) = departed.iter().find(|(_, model)| decides(model))?;
    let name = name.clone();
    departed.remove(&name)
}
