//! The policies of each role: what is learnt of prefill workers says nothing about decode workers.

use std::sync::Arc;
use std::time::Duration;

use routing::prefix::Correction;
use routing::replicas::Journal;
use routing::{Params, Policy, PolicyKind};

use super::model_policies::ModelPolicies;
use crate::config::Options;
use crate::fleet::Role;

/// Which policy chooses among the workers of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoleKinds {
    pub(crate) regular: PolicyKind,
    pub(crate) prefill: PolicyKind,
    pub(crate) decode: PolicyKind,
}

impl RoleKinds {
    /// The policies of options, where those of pairs may be left out. Decode workers hold no
    /// prompts that a later request could use, so in place of a policy that follows prompts the
    /// load decides there.
    fn new(policy: PolicyKind, prefill: Option<PolicyKind>, decode: Option<PolicyKind>) -> Self {
        let fallback = match policy {
            PolicyKind::CacheAware | PolicyKind::Bucket => PolicyKind::LeastLoad,
            other => other,
        };
        Self {
            regular: policy,
            prefill: prefill.unwrap_or(policy),
            decode: decode.unwrap_or(fallback),
        }
    }
}

impl From<&Options> for RoleKinds {
    fn from(options: &Options) -> Self {
        let (prefill, decode) = (options.prefill_policy, options.decode_policy);
        Self::new(options.policy, prefill, decode)
    }
}

impl From<PolicyKind> for RoleKinds {
    fn from(policy: PolicyKind) -> Self {
        Self::new(policy, None, None)
    }
}

/// The policies of each role.
#[derive(Debug)]
pub(crate) struct RolePolicies {
    regular: ModelPolicies,
    prefill: ModelPolicies,
    decode: ModelPolicies,
    /// Where placements are noted for other gateways.
    journal: Option<Arc<Journal>>,
}

impl RolePolicies {
    /// Instances of these kinds, unless a worker's label asks for another.
    pub(crate) fn new(
        kinds: impl Into<RoleKinds>,
        factory: impl Fn(PolicyKind) -> Box<dyn Policy> + Clone + Send + Sync + 'static,
    ) -> Self {
        let kinds = kinds.into();
        let of = |kind| ModelPolicies::new(kind, factory.clone());
        Self {
            regular: of(kinds.regular),
            prefill: of(kinds.prefill),
            decode: of(kinds.decode),
            journal: None,
        }
    }

    /// The same, whose placements are noted there also by other tunables.
    pub(crate) fn with_journal(mut self, journal: Option<Arc<Journal>>) -> Self {
        self.journal = journal;
        self
    }

    /// Chooses by other kinds, or by the same with other tunables.
    pub(super) fn set(&self, kinds: RoleKinds, params: &Params) {
        let journal = self.journal.clone();
        let params = &Params {
            journal,
            ..params.clone()
        };
        self.regular.set(kinds.regular, params);
        self.prefill.set(kinds.prefill, params);
        self.decode.set(kinds.decode, params);
    }

    pub(super) fn of(&self, role: Role) -> &ModelPolicies {
        match role {
            Role::Regular => &self.regular,
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
        }
    }

    fn each(&self) -> [&ModelPolicies; 3] {
        [&self.regular, &self.prefill, &self.decode]
    }

    /// Sets the bytes of prompts that each worker's cache holds, by slot, where known.
    pub(super) fn set_cache_sizes(&self, bytes_by_slot: &[Option<u64>]) {
        for policies in self.each() {
            policies.set_cache_sizes(bytes_by_slot);
        }
    }

    /// Forgets what a reply has disproved of a worker's cache.
    pub(super) fn correct(&self, correction: &Correction) {
        for policies in self.each() {
            policies.correct(correction);
        }
    }

    /// Routing keys that all instances remember, where any does.
    pub(super) fn keys(&self) -> Option<usize> {
        let keys = self.each().into_iter().filter_map(ModelPolicies::keys);
        keys.reduce(|one, other| one + other)
    }

    /// Bytes of all instances' indexes of prompts, where any has one.
    pub(super) fn index_bytes(&self) -> Option<usize> {
        let bytes = self.each().into_iter();
        let bytes = bytes.filter_map(ModelPolicies::index_bytes);
        bytes.reduce(|one, other| one + other)
    }

    /// Frees routing state that is no longer needed.
    pub(super) fn sweep(&self, now: Duration) {
        for policies in self.each() {
            policies.sweep(now);
        }
    }
}
