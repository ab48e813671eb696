//! The policies at work: one for all workers, and one for those of every model.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::{Candidate, Policy, PolicyKind};
use uuid::Uuid;

type PolicyFactory = dyn Fn(PolicyKind) -> Box<dyn Policy> + Send + Sync;

/// A policy at work.
#[derive(Clone, Debug)]
pub(super) struct PolicyInstance {
    pub(super) kind: PolicyKind,
    pub(super) policy: Arc<dyn Policy>,
}

/// One who serves a model.
#[derive(Debug)]
pub(super) struct ModelMember {
    pub(super) id: Uuid,
    /// The policy it is labelled with.
    pub(super) label: Option<PolicyKind>,
    pub(super) candidate: Candidate,
}

/// Who serves each model, by ascending slot.
pub(super) type MembersByModel = BTreeMap<String, Vec<ModelMember>>;

/// A model that is served, and what was decided for it.
#[derive(Debug)]
struct Model {
    /// Whose label decides: the first; once it has left, the next one's when that changes.
    label_owner: Uuid,
    label: Option<PolicyKind>,
    kind: PolicyKind,
    assignment: Assignment,
}

/// Where a model's policy is at work.
#[derive(Debug, Default)]
enum Assignment {
    #[default]
    None,
    /// It is the one for any worker: no other model is served.
    Shared,
    Dedicated(PolicyInstance),
}

#[derive(Debug)]
struct Active {
    shared: PolicyInstance,
    models: BTreeMap<String, Model>,
}

/// One instance for requests that may go to any worker and, where several models are served or
/// a worker's label asks for it, one for each: what is learnt of one model's prompts says
/// nothing about another's.
pub(crate) struct ModelPolicies {
    /// Unless a label asks for another.
    kind: PolicyKind,
    factory: Box<PolicyFactory>,
    active: Mutex<Active>,
}

impl fmt::Debug for ModelPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelPolicies")
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl ModelPolicies {
    /// Of this kind, unless a label asks for another.
    pub(crate) fn new(
        kind: PolicyKind,
        factory: impl Fn(PolicyKind) -> Box<dyn Policy> + Send + Sync + 'static,
    ) -> Self {
        let policy = factory(kind).into();
        let shared = PolicyInstance { kind, policy };
        let models = BTreeMap::new();
        Self {
            kind,
            factory: Box::new(factory),
            active: Mutex::new(Active { shared, models }),
        }
    }

    /// The kind of those that no label decides about.
    pub(super) fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// Tells every instance who its members are, ready or not; makes those that are new and
    /// drops those whose model is no longer served.
    pub(super) fn set_members(&self, all: &[Candidate], members: &MembersByModel) {
        let mut active = self.active();
        self.assign_kinds(&mut active, members);
        let single = members.len() == 1;
        self.assign(&mut active, single);
        active.shared.policy.members(all);
        for (name, by) in members {
            let dedicated = active.models.get(name).and_then(Model::dedicated);
            let Some(PolicyInstance { policy, .. }) = dedicated else {
                continue;
            };
            if single {
                // Whatever a request calls it, every worker serves it.
                policy.members(all);
            } else {
                let those: Vec<_> = by.iter().map(|server| server.candidate.clone()).collect();
                policy.members(&those);
            }
        }
    }

    /// Which models there are, and which policy each has.
    fn assign_kinds(&self, active: &mut Active, members: &MembersByModel) {
        let before = mem::take(&mut active.models).into_iter();
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
                // What was decided stands until its heir's label changes.
                (model.label_owner, model.label) = (first.id, first.label);
            }
            let label = label_owner.unwrap_or(first).label;
            if label != model.label {
                model.label = label;
                self.change(&mut model, label.unwrap_or(self.kind), &mut active.shared);
            }
            active.models.insert(name.clone(), model);
        }
    }

    /// Another policy knows nothing of what the one before has learnt.
    fn change(&self, model: &mut Model, kind: PolicyKind, shared: &mut PolicyInstance) {
        if model.kind == kind {
            return;
        }
        model.kind = kind;
        if let Assignment::Shared = mem::take(&mut model.assignment) {
            *shared = self.instance(self.kind);
        }
    }

    /// Gives every model its instance. What is at work goes on: where a second model comes, the
    /// first takes along the one for all; where only one is left, its own becomes that.
    fn assign(&self, active: &mut Active, single: bool) {
        let Active { shared, models } = active;
        for model in models.values_mut() {
            let shares = single && model.kind == self.kind;
            model.assignment = match (mem::take(&mut model.assignment), shares) {
                (Assignment::Dedicated(dedicated), true) => {
                    *shared = dedicated;
                    Assignment::Shared
                }
                (_, true) => Assignment::Shared,
                (Assignment::Shared, false) => {
                    Assignment::Dedicated(mem::replace(shared, self.instance(self.kind)))
                }
                (Assignment::None, false) => Assignment::Dedicated(self.instance(model.kind)),
                (dedicated, false) => dedicated,
            };
        }
    }

    fn instance(&self, kind: PolicyKind) -> PolicyInstance {
        let policy = (self.factory)(kind).into();
        PolicyInstance { kind, policy }
    }

    /// The instance for requests that any worker may have.
    pub(super) fn shared(&self) -> PolicyInstance {
        let active = self.active();
        let only = active.models.values().next();
        match only.map(|model| &model.assignment) {
            Some(Assignment::Dedicated(dedicated)) if active.models.len() == 1 => dedicated.clone(),
            _ => active.shared.clone(),
        }
    }

    /// The instance of each model, where there are several.
    pub(super) fn by_model(&self) -> BTreeMap<String, PolicyInstance> {
        let active = self.active();
        let models = &active.models;
        let several = models.iter().filter(|_| models.len() > 1);
        several
            .filter_map(|(name, model)| Some((name.clone(), model.dedicated()?.clone())))
            .collect()
    }

    /// Bytes of prompts that each worker's cache holds, by slot, where it is known.
    pub(super) fn capacity(&self, text: &[Option<u64>]) {
        self.each(|policy| policy.capacity(text));
    }

    /// Keys that all instances remember, where they remember any.
    pub(super) fn keys(&self) -> Option<usize> {
        let instances = self.all().into_iter();
        let keys = instances.filter_map(|instance| instance.policy.keys());
        keys.reduce(|one, other| one + other)
    }

    /// Frees routing state that nobody needs any more.
    pub(super) fn sweep(&self, now: Duration) {
        self.each(|policy| policy.sweep(now));
    }

    fn each(&self, tell: impl Fn(&dyn Policy)) {
        for instance in self.all() {
            tell(&*instance.policy);
        }
    }

    /// Every instance. A copy: what is done with them may take its time.
    pub(super) fn all(&self) -> Vec<PolicyInstance> {
        let active = self.active();
        let dedicated = active.models.values().filter_map(Model::dedicated);
        dedicated.chain([&active.shared]).cloned().collect()
    }

    fn active(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The model that nobody serves any more and whose decider is among these: it has a new name.
fn renamed(departed: &mut BTreeMap<String, Model>, by: &[ModelMember]) -> Option<Model> {
    let decides = |model: &Model| by.iter().any(|server| server.id == model.label_owner);
    let (name, _) = departed.iter().find(|(_, model)| decides(model))?;
    let name = name.clone();
    departed.remove(&name)
}
