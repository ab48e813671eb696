//! The policy, as often as it is needed: for all workers, and for those of every model.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use routing::{Candidate, Policy};

type Make = dyn Fn() -> Box<dyn Policy> + Send + Sync;

/// One instance for requests that may go to any worker and, where several models are served,
/// one for each: what is learnt of one model's prompts says nothing about another's.
pub(crate) struct Policies {
    name: &'static str,
    make: Box<Make>,
    any: Arc<dyn Policy>,
    models: Mutex<BTreeMap<String, Arc<dyn Policy>>>,
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Policies {
    /// Of the policy that users call `name`.
    pub(crate) fn new(
        name: &'static str,
        make: impl Fn() -> Box<dyn Policy> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            any: make().into(),
            make: Box::new(make),
            models: Mutex::default(),
        }
    }

    /// The name users write.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The instance for any worker.
    pub(super) fn any(&self) -> Arc<dyn Policy> {
        Arc::clone(&self.any)
    }

    /// Tells every instance who its members are, ready or not; makes those that are new and
    /// drops those whose model is no longer served.
    pub(super) fn introduce(&self, all: &[Candidate], models: &BTreeMap<String, Vec<Candidate>>) {
        self.any.members(all);
        let mut instances = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        instances.retain(|model, _| models.contains_key(model));
        for (model, members) in models {
            let instance = instances
                .entry(model.clone())
                .or_insert_with(|| (self.make)().into());
            instance.members(members);
        }
    }

    /// The instance of each model, where there are several.
    pub(super) fn by_model(&self) -> BTreeMap<String, Arc<dyn Policy>> {
        let instances = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        instances.clone()
    }

    /// Bytes of prompts that each worker's cache holds, by slot, where it is known.
    pub(super) fn capacity(&self, text: &[Option<u64>]) {
        self.any.capacity(text);
        for instance in self.by_model().values() {
            instance.capacity(text);
        }
    }

    /// Keys that all instances remember, where they remember any.
    pub(super) fn keys(&self) -> Option<usize> {
        let of_models = self.by_model();
        let instances = of_models.values().chain([&self.any]);
        let keys = instances.filter_map(|instance| instance.keys());
        keys.reduce(|one, other| one + other)
    }

    /// Frees routing state that nobody needs any more.
    pub(super) fn sweep(&self, now: Duration) {
        self.any.sweep(now);
        for instance in self.by_model().values() {
            instance.sweep(now);
        }
    }
}
