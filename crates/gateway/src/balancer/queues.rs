//! The queues in front of pools of workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use routing::quota::SharedLimits;

use crate::admission::WorkerQueue;
use crate::fleet::Role;

/// Which requests a queue is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PoolKey {
    /// `None`: requests of any model.
    model: Option<String>,
    role: Role,
}

/// The queues of all pools. They outlive snapshots, for requests wait in them.
#[derive(Debug)]
pub(super) struct Queues(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    queues: BTreeMap<PoolKey, Arc<WorkerQueue>>,
    /// Requests that may wait in each, if workers have a limit.
    size: Option<usize>,
    /// Where other gateways share them.
    shared: Option<Arc<SharedLimits>>,
}

impl PoolKey {
    /// The key of a pool's queue. Both roles of pairs share one: a request waits for both workers.
    pub(super) fn of_queue(model: Option<&str>, role: Role) -> Self {
        Self {
            model: model.map(str::to_owned),
            role: match role {
                Role::Regular => Role::Regular,
                Role::Prefill | Role::Decode => Role::Decode,
            },
        }
    }

    /// What all gateways call the queue.
    fn name(&self) -> String {
        let workers = match self.role {
            Role::Regular => "workers",
            Role::Prefill | Role::Decode => "pairs",
        };
        match &self.model {
            None => workers.to_owned(),
            Some(model) => format!("{workers}:{model}"),
        }
    }
}

impl Queues {
    /// Queues in each of which so many may wait; `None` where workers have no limit.
    pub(super) fn new(size: Option<usize>) -> Self {
        Self(Mutex::new(State {
            size,
            ..State::default()
        }))
    }

    /// The queue of a pool.
    pub(super) fn of(&self, key: PoolKey) -> Arc<WorkerQueue> {
        let mut state = self.lock();
        if let Some(known) = state.queues.get(&key) {
            return Arc::clone(known);
        }
        let queue = Arc::new(WorkerQueue::new(state.size));
        let shared = state.shared.iter();
        shared.for_each(|it| it.add_queue(&key.name(), &queue));
        state.queues.insert(key, Arc::clone(&queue));
        queue
    }

    /// Shares them with other gateways.
    pub(super) fn share(&self, limits: &Arc<SharedLimits>) {
        let mut state = self.lock();
        state.shared = Some(Arc::clone(limits));
        let queues = state.queues.iter();
        queues.for_each(|(key, queue)| limits.add_queue(&key.name(), queue));
    }

    /// Sets how many may wait in each.
    pub(super) fn set_size(&self, size: Option<usize>) {
        let mut state = self.lock();
        state.size = size;
        state.queues.values().for_each(|queue| queue.set_size(size));
    }

    /// Forgets the queues of models that are no longer served and have no waiters.
    pub(super) fn retain(&self, serves: impl Fn(&str) -> bool) {
        self.lock().queues.retain(|key, queue| {
            let model = key.model.as_deref();
            model.is_none_or(&serves) || queue.waiting() > 0
        });
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        let state = self.lock();
        state.queues.values().map(|queue| queue.waiting()).sum()
    }

    /// Several workers may have become free.
    pub(super) fn wake_all(&self) {
        let state = self.lock();
        state.queues.values().for_each(|queue| queue.wake_all());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use routing::quota::SharedQueue;

    use super::*;

    #[test]
    fn queue_is_shared_under_a_name_for_its_model_and_kind_of_workers_with_the_size_in_force() {
        let (queues, limits) = (Queues::new(Some(3)), Arc::new(SharedLimits::default()));
        let key = |model, role| PoolKey::of_queue(model, role);
        let one = queues.of(key(Some("m"), Role::Prefill));
        assert!(Arc::ptr_eq(&one, &queues.of(key(Some("m"), Role::Decode))));
        queues.share(&limits);
        queues.set_size(Some(5));
        for (model, role) in [
            (None, Role::Regular),
            (Some("m"), Role::Regular),
            (None, Role::Decode),
        ] {
            queues.of(key(model, role));
        }
        let shared = || -> Vec<_> {
            let all = limits.list_queues().into_iter();
            let total = |queue: Weak<dyn SharedQueue>| queue.upgrade().unwrap().total();
            all.map(|(name, queue)| (name.to_string(), total(queue)))
                .collect()
        };
        let names = ["pairs", "pairs:m", "workers", "workers:m"];
        assert_eq!(shared(), names.map(|name| (name.to_owned(), 5)));
        queues.set_size(None);
        assert_eq!(shared(), names.map(|name| (name.to_owned(), 0)));
        drop(one);
        queues.retain(|_| false);
        assert_eq!(limits.list_queues().len(), 2);
    }
}
