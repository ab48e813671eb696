//! Which ways policies take: `smg_manual_policy_branch_total`,
//! `smg_consistent_hashing_policy_branch_total`, `smg_prefix_hash_policy_branch_total`; and
//! how many keys `manual` remembers: `smg_manual_policy_cache_entries`.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};
use routing::{Branch, PolicyKind};

use super::metrics::{Maker, Metrics};

/// What policies tell of themselves.
#[derive(Debug)]
pub(super) struct Policies {
    branches: Vec<(PolicyKind, IntCounterVec)>,
    manual_entries: IntGaugeVec,
}

/// The handles of the policy in force; none where it has but one way.
#[derive(Debug)]
pub(crate) struct BranchMetrics(Vec<(Branch, IntCounter)>);

impl Policies {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let branching = PolicyKind::ALL.into_iter();
        let branching = branching.filter(|kind| !kind.branches().is_empty());
        let counter = |kind: PolicyKind| {
            let name = format!("smg_{}_policy_branch_total", kind.as_str());
            let help = "which way a policy's choices came about";
            Ok((kind, maker.counter(&name, help, &["branch"])?))
        };
        Ok(Self {
            branches: branching.map(counter).collect::<prometheus::Result<_>>()?,
            manual_entries: maker.gauge(
                "smg_manual_policy_cache_entries",
                "routing keys that the manual policy remembers",
                &[],
            )?,
        })
    }
}

impl Metrics {
    /// The handles of a policy's branches.
    pub(crate) fn branches(&self, kind: PolicyKind) -> BranchMetrics {
        let of_kind = self.policies.branches.iter().filter(|(of, _)| *of == kind);
        let handles = of_kind.flat_map(|(_, counter)| {
            let all = Branch::BEFORE.iter().chain(kind.branches());
            all.map(|branch| (*branch, counter.with_label_values(&[branch.as_str()])))
        });
        BranchMetrics(handles.collect())
    }

    /// How many routing keys are remembered.
    pub(crate) fn sticky_keys(&self, keys: usize) {
        let gauge = self.policies.manual_entries.with_label_values::<&str>(&[]);
        gauge.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}

impl BranchMetrics {
    /// A choice came about, or failed to.
    pub(crate) fn count(&self, taken: Branch) {
        if let Some((_, counter)) = self.0.iter().find(|(branch, _)| *branch == taken) {
            counter.inc();
        }
    }
}
