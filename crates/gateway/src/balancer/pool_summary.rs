//! The pools of workers as operators see them.

use routing::PolicyKind;

use super::snapshot::{Snapshot, WorkerPool};
use crate::fleet::Role;

/// Workers of one role that may serve the same requests.
#[derive(Clone, Debug)]
pub(crate) struct PoolSummary {
    /// `None`: requests that name none of several models.
    pub(crate) model: Option<String>,
    pub(crate) role: Role,
    pub(crate) policy: PolicyKind,
    /// Workers that get requests.
    pub(crate) selectable: usize,
    /// Workers that get one only when no other may have it.
    pub(crate) fallback: usize,
    /// Half of the breakers or more let nothing through, and are ignored.
    pub(crate) panicking: bool,
    /// Requests that wait for a worker. Both roles of pairs have one queue.
    pub(crate) waiting: usize,
}

impl PoolSummary {
    fn new(model: Option<&str>, role: Role, pool: &WorkerPool) -> Self {
        Self {
            model: model.map(str::to_owned),
            role,
            policy: pool.instance.kind,
            selectable: pool.selectable.len(),
            fallback: pool.fallback.len(),
            panicking: pool.panicking,
            waiting: pool.queue.waiting(),
        }
    }

    /// Whether it says anything: the pool has a model of its own, or requests wait for it.
    fn is_shown(&self) -> bool {
        self.model.is_some() || self.waiting > 0
    }
}

/// The pools of a snapshot.
pub(super) fn summarize(snapshot: &Snapshot) -> Vec<PoolSummary> {
    let of_role = |role: Role| {
        let pools = snapshot.of(role).each();
        pools.map(move |(model, pool)| PoolSummary::new(model, role, pool))
    };
    let pools = Role::ALL.into_iter().flat_map(of_role);
    pools.filter(PoolSummary::is_shown).collect()
}
