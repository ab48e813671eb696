//! Policies: one trait, one file each, and the one list of all of them.

#[macro_use]
mod list;

mod branch;
mod params;
mod pick;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use branch::Branch;
pub use cache_aware::{CongestionFactor, ReplicationDiscount};
pub use params::{AssignmentMode, Balance, Params, TieBreak};
pub use pick::{Pick, Policy, Ranked};

use crate::ZoneRule;

// A new policy is a new file and a line at the end of this list: names in Python, flags, metrics and
// errors follow from it. `cargo fmt` does not see these files; `make fmt` and `make lint` do.
policies! {
    mod random: Random, free, |_| Random, "Uniform chance.";
    mod round_robin: RoundRobin, free, |_| RoundRobin::default(), "Each in turn.";
    mod cache_aware: CacheAware, free, CacheAware::new, "Longest shared prefix at the lowest cost.";
    mod power_of_two: PowerOfTwo, free, |_| PowerOfTwo, "The less loaded of two drawn at random.";
    mod bucket: Bucket, free, Bucket::new, "By request length (prefill pools).";
    mod manual: Manual, sticky, Manual::new, "Sticky by routing key.";
    mod consistent_hashing: ConsistentHashing, sticky, ConsistentHashing::new, "A ring of keys.";
    mod prefix_hash: PrefixHash, sticky, PrefixHash::new, "A ring of prompt prefixes.";
    mod least_load: LeastLoad, free, |_| LeastLoad, "The shortest predicted wait.";
}

impl PolicyKind {
    /// How it heeds the zones of workers.
    pub fn zone_rule(self) -> ZoneRule {
        match self {
            Self::CacheAware => ZoneRule::ByCost,
            Self::Bucket => ZoneRule::Ignored,
            kind if kind.is_sticky() => ZoneRule::Ignored,
            _ => ZoneRule::NearFirst,
        }
    }

    /// The policy that users call so, with or without underscores.
    pub fn named(name: &str) -> Option<Self> {
        let bare = |name: &str| name.replace('_', "").to_ascii_lowercase();
        let name = bare(name);
        Self::ALL
            .into_iter()
            .find(|kind| bare(kind.as_str()) == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_known_by_name_with_and_without_underscores() {
        for kind in PolicyKind::ALL {
            assert_eq!(PolicyKind::named(kind.as_str()), Some(kind));
            let bare = kind.as_str().replace('_', "");
            assert_eq!(PolicyKind::named(&bare), Some(kind));
        }
        assert_eq!(PolicyKind::named("fastest"), None);
        assert_eq!(PolicyKind::named(""), None);
    }
}
