//! The policies at work: one for all workers, and one for those of every model.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::{Candidate, Policy, PolicyKind};

type Make = dyn Fn(PolicyKind) -> Box<dyn Policy> + Send + Sync;

/// A policy at work.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) kind: PolicyKind,
    pub(super) policy: Arc<dyn Policy>,
}

/// Who serves a model, ready or not.
#[derive(Debug)]
pub(super) struct Served {
    /// The policy that the first of them was labelled with.
    pub(super) label: Option<PolicyKind>,
    pub(super) by: Vec<Candidate>,
}

/// What was decided for a model: by its first worker, until its last one has left.
#[derive(Debug)]
struct Model {
    label: Option<PolicyKind>,
    instance: Option<Instance>,
}

/// One instance for requests that may go to any worker and, where several models are served or
/// a worker's label asks for it, one for each: what is learnt of one model's prompts says
/// nothing about another's.
pub(crate) struct Policies {
    make: Box<Make>,
    any: Instance,
    models: Mutex<BTreeMap<String, Model>>,
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("any", &self.any)
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
        Self {
            any: Instance { kind, policy },
            make: Box::new(make),
            models: Mutex::default(),
        }
    }

    /// The kind of those that no label decides about.
    pub(super) fn kind(&self) -> PolicyKind {
        self.any.kind
    }

    /// Tells every instance who its members are, ready or not; makes those that are new and
    /// drops those whose model is no longer served.
    pub(super) fn introduce(&self, all: &[Candidate], served: &BTreeMap<String, Served>) {
        self.any.policy.members(all);
        let mut models = self.models();
        models.retain(|name, _| served.contains_key(name));
        let sole = served.len() == 1;
        for (name, served) in served {
            let label = served.label;
            let model = models.entry(name.clone()).or_insert(Model {
                label,
                instance: None,
            });
            if sole && model.label.is_none() {
                // Whatever a request calls it, every worker serves it.
                model.instance = None;
                continue;
            }
            let kind = model.label.unwrap_or(self.any.kind);
            let instance = model.instance.get_or_insert_with(|| Instance {
                kind,
                policy: (self.make)(kind).into(),
            });
            instance.policy.members(if sole { all } else { &served.by });
        }
    }

    /// The instance for requests that any worker may have.
    pub(super) fn for_any(&self) -> Instance {
        let models = self.models();
        let mut labelled = models.values().filter_map(|model| model.instance.as_ref());
        let sole = labelled.next().filter(|_| models.len() == 1);
        sole.unwrap_or(&self.any).clone()
    }

    /// The instance of each model, where there are several.
    pub(super) fn by_model(&self) -> BTreeMap<String, Instance> {
        let models = self.models();
        let several = models.iter().filter(|_| models.len() > 1);
        several
            .filter_map(|(name, model)| Some((name.clone(), model.instance.clone()?)))
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
    fn all(&self) -> Vec<Instance> {
        let models = self.models();
        let instances = models.values().filter_map(|model| model.instance.clone());
        instances.chain([self.any.clone()]).collect()
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<String, Model>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
