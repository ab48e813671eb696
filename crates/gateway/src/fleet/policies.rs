//! The policies at work: one for all workers, and one for those of every model.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::{Candidate, Policy, PolicyKind};
use uuid::Uuid;

type Make = dyn Fn(PolicyKind) -> Box<dyn Policy> + Send + Sync;

/// A policy at work.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) kind: PolicyKind,
    pub(super) policy: Arc<dyn Policy>,
}

/// One who serves a model.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) id: Uuid,
    /// The policy it is labelled with.
    pub(super) label: Option<PolicyKind>,
    pub(super) candidate: Candidate,
}

/// Who serves each model, by ascending slot.
pub(super) type Served = BTreeMap<String, Vec<Server>>;

/// A model that is served, and what was decided for it.
#[derive(Debug)]
struct Model {
    /// Whose label decides: the first; once it has left, the next one's when that changes.
    decider: Uuid,
    label: Option<PolicyKind>,
    kind: PolicyKind,
    seat: Seat,
}

/// Where a model's policy is at work.
#[derive(Debug, Default)]
enum Seat {
    #[default]
    Nowhere,
    /// It is the one for any worker: no other model is served.
    Any,
    Own(Instance),
}

#[derive(Debug)]
struct AtWork {
    any: Instance,
    models: BTreeMap<String, Model>,
}

/// One instance for requests that may go to any worker and, where several models are served or
/// a worker's label asks for it, one for each: what is learnt of one model's prompts says
/// nothing about another's.
pub(crate) struct Policies {
    /// Unless a label asks for another.
    kind: PolicyKind,
    make: Box<Make>,
    at_work: Mutex<AtWork>,
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("at_work", &self.at_work)
            .finish_non_exhaustive()
    }
}

impl Policies {
    /// Of this kind, unless a label asks for another.
    pub(crate) fn new(
        kind: PolicyKind,
        make: impl Fn(PolicyKind) -> Box<dyn Policy> + Send + Sync + 'static,
    ) -> Self {
        let policy = make(kind).into();
        let any = Instance { kind, policy };
        let models = BTreeMap::new();
        Self {
            kind,
            make: Box::new(make),
            at_work: Mutex::new(AtWork { any, models }),
        }
    }

    /// The kind of those that no label decides about.
    pub(super) fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// Tells every instance who its members are, ready or not; makes those that are new and
    /// drops those whose model is no longer served.
    pub(super) fn introduce(&self, all: &[Candidate], served: &Served) {
        let mut at_work = self.at_work();
        self.decide(&mut at_work, served);
        let sole = served.len() == 1;
        self.seat(&mut at_work, sole);
        at_work.any.policy.members(all);
        for (name, by) in served {
            let own = at_work.models.get(name).and_then(Model::own);
            let Some(Instance { policy, .. }) = own else {
                continue;
            };
            if sole {
                // Whatever a request calls it, every worker serves it.
                policy.members(all);
            } else {
                let those: Vec<_> = by.iter().map(|server| server.candidate.clone()).collect();
                policy.members(&those);
            }
        }
    }

    /// Which models there are, and which policy each has.
    fn decide(&self, at_work: &mut AtWork, served: &Served) {
        let before = mem::take(&mut at_work.models).into_iter();
        let (mut stay, mut left): (BTreeMap<_, _>, BTreeMap<_, _>) =
            before.partition(|(name, _)| served.contains_key(name));
        for (name, by) in served {
            let Some(first) = by.first() else { continue };
            let known = stay.remove(name).or_else(|| renamed(&mut left, by));
            let mut model = known.unwrap_or(Model {
                decider: first.id,
                label: first.label,
                kind: first.label.unwrap_or(self.kind),
                seat: Seat::Nowhere,
            });
            let decider = by.iter().find(|server| server.id == model.decider);
            if decider.is_none() {
                // What was decided stands until its heir's label changes.
                (model.decider, model.label) = (first.id, first.label);
            }
            let label = decider.unwrap_or(first).label;
            if label != model.label {
                model.label = label;
                self.change(&mut model, label.unwrap_or(self.kind), &mut at_work.any);
            }
            at_work.models.insert(name.clone(), model);
        }
    }

    /// Another policy knows nothing of what the one before has learnt.
    fn change(&self, model: &mut Model, kind: PolicyKind, any: &mut Instance) {
        if model.kind == kind {
            return;
        }
        model.kind = kind;
        if let Seat::Any = mem::take(&mut model.seat) {
            *any = self.instance(self.kind);
        }
    }

    /// Gives every model its instance. What is at work goes on: where a second model comes, the
    /// first takes along the one for all; where only one is left, its own becomes that.
    fn seat(&self, at_work: &mut AtWork, sole: bool) {
        let AtWork { any, models } = at_work;
        for model in models.values_mut() {
            let shares = sole && model.kind == self.kind;
            model.seat = match (mem::take(&mut model.seat), shares) {
                (Seat::Own(own), true) => {
                    *any = own;
                    Seat::Any
                }
                (_, true) => Seat::Any,
                (Seat::Any, false) => Seat::Own(mem::replace(any, self.instance(self.kind))),
                (Seat::Nowhere, false) => Seat::Own(self.instance(model.kind)),
                (own, false) => own,
            };
        }
    }

    fn instance(&self, kind: PolicyKind) -> Instance {
        let policy = (self.make)(kind).into();
        Instance { kind, policy }
    }

    /// The instance for requests that any worker may have.
    pub(super) fn for_any(&self) -> Instance {
        let at_work = self.at_work();
        let only = at_work.models.values().next();
        match only.map(|model| &model.seat) {
            Some(Seat::Own(own)) if at_work.models.len() == 1 => own.clone(),
            _ => at_work.any.clone(),
        }
    }

    /// The instance of each model, where there are several.
    pub(super) fn by_model(&self) -> BTreeMap<String, Instance> {
        let at_work = self.at_work();
        let models = &at_work.models;
        let several = models.iter().filter(|_| models.len() > 1);
        several
            .filter_map(|(name, model)| Some((name.clone(), model.own()?.clone())))
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
    pub(super) fn all(&self) -> Vec<Instance> {
        let at_work = self.at_work();
        let own = at_work.models.values().filter_map(Model::own);
        own.chain([&at_work.any]).cloned().collect()
    }

    fn at_work(&self) -> MutexGuard<'_, AtWork> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    fn own(&self) -> Option<&Instance> {
        match &self.seat {
            Seat::Own(own) => Some(own),
            Seat::Nowhere | Seat::Any => None,
        }
    }
}

/// The model that nobody serves any more and whose decider is among these: it has a new name.
fn renamed(left: &mut BTreeMap<String, Model>, by: &[Server]) -> Option<Model> {
    let decides = |model: &Model| by.iter().any(|server| server.id == model.decider);
    let (name, _) = left.iter().find(|(_, model)| decides(model))?;
    let name = name.clone();
    left.remove(&name)
}
