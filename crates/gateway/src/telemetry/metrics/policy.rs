//! The branches that policies take: `smg_manual_policy_branch_total`,
//! `smg_consistent_hashing_policy_branch_total`, `smg_prefix_hash_policy_branch_total`; how many
//! keys `manual` remembers, and how much memory the index of `cache_aware` uses.

use std::sync::OnceLock;

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};
use routing::{Branch, PolicyKind};

use super::registry::Maker;

/// The metrics of policies.
#[derive(Debug)]
pub(super) struct Policies {
    branches: Vec<(PolicyKind, IntCounterVec)>,
    manual_entries: IntGaugeVec,
    index_bytes: IntGaugeVec,
}

/// The handles of every policy that has several ways, made when it is first in force.
#[derive(Debug)]
pub(crate) struct BranchMetrics(Vec<OfKind>);

#[derive(Debug)]
struct OfKind {
    kind: PolicyKind,
    counter: IntCounterVec,
    handles: OnceLock<Vec<(Branch, IntCounter)>>,
}

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
            index_bytes: maker.gauge(
                "smg_cache_aware_index_bytes",
                "memory that the indexes of prompts use",
                &[],
            )?,
        })
    }

    /// The handles of all policies' branches; `in_force` is the policy at work.
    pub(super) fn handles(&self, in_force: PolicyKind) -> BranchMetrics {
        let of_kind = |(kind, counter): &(PolicyKind, IntCounterVec)| OfKind {
            kind: *kind,
            counter: counter.clone(),
            handles: OnceLock::new(),
        };
        let branches = BranchMetrics(self.branches.iter().map(of_kind).collect());
        branches.of(in_force);
        branches
    }

    /// How many routing keys are remembered, where any policy remembers some.
    pub(super) fn sticky_keys(&self, keys: Option<usize>) {
        show(&self.manual_entries, keys);
    }

    /// Bytes of the indexes of prompts, where a policy has one.
    pub(super) fn index_bytes(&self, bytes: Option<usize>) {
        show(&self.index_bytes, bytes);
    }
}

/// Sets a gauge without labels, or takes it off the page.
fn show(gauge: &IntGaugeVec, value: Option<usize>) {
    gauge.reset();
    if let Some(value) = value {
        let gauge = gauge.with_label_values::<&str>(&[]);
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

impl BranchMetrics {
    /// A choice of this policy came about, or failed to.
    pub(crate) fn count(&self, kind: PolicyKind, taken: Branch) {
        let counted = self.of(kind).iter().find(|(branch, _)| *branch == taken);
        if let Some((_, counter)) = counted {
            counter.inc();
        }
    }

    fn of(&self, kind: PolicyKind) -> &[(Branch, IntCounter)] {
        let of_kind = self.0.iter().find(|of| of.kind == kind);
        of_kind.map_or(&[], OfKind::handles)
    }
}

impl OfKind {
    fn handles(&self) -> &[(Branch, IntCounter)] {
        self.handles.get_or_init(|| {
            let all = Branch::BEFORE.iter().chain(self.kind.branches());
            all.map(|branch| (*branch, self.counter.with_label_values(&[branch.as_str()])))
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn each_policy_counts_its_own_branches() {
        let metrics = Metrics::new(None).unwrap();
        let branches = metrics.branches(PolicyKind::Manual);
        let page = || metrics.render().unwrap();
        assert!(page().contains(r#"smg_manual_policy_branch_total{branch="vacant"} 0"#));
        assert!(!page().contains("smg_prefix_hash"));
        branches.count(PolicyKind::PrefixHash, Branch::LoadBalanceWalk);
        branches.count(PolicyKind::Random, Branch::TargetWorkerHit);
        let walked = r#"smg_prefix_hash_policy_branch_total{branch="load_balance_walk"} 1"#;
        assert!(page().contains(walked), "{}", page());
        let hits = page().matches("target_worker_hit\"} 0").count();
        assert_eq!((hits, page().contains("smg_consistent")), (2, false));
    }

    #[test]
    fn sticky_keys_end_with_the_policy() {
        let metrics = Metrics::new(None).unwrap();
        metrics.sticky_keys(Some(3));
        let page = metrics.render().unwrap();
        assert!(
            page.contains("\nsmg_manual_policy_cache_entries 3\n"),
            "{page}"
        );
        metrics.sticky_keys(None);
        assert!(!metrics.render().unwrap().contains("cache_entries"));
    }
}
