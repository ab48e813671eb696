//! Policies: the one trait, and the one list of all of them.

mod branch;
mod bucket;
mod cache_aware;
mod consistent_hashing;
mod least_load;
mod manual;
mod params;
mod power_of_two;
mod prefix_hash;
mod random;
mod round_robin;

use std::fmt::Debug;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use branch::Branch;
pub use cache_aware::{CongestionFactor, ReplicationDiscount};
pub use params::{AssignmentMode, Balance, Params};

use crate::{Candidate, Candidates, Request};

/// Chooses a worker.
pub trait Policy: Send + Sync + Debug {
    /// The worker this request goes to; the policy may learn from its own choice. Must not block.
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a>;

    /// What [`pick`](Self::pick) would weigh, best first, changing nothing. Empty where a
    /// policy has no costs to show.
    fn rank<'a>(&self, _from: Candidates<'a>, _request: &Request<'_>) -> Vec<Ranked<'a>> {
        Vec::new()
    }

    /// Everybody there is, ready or not, whenever that changes. What is not in the list, or
    /// has a new generation, is forgotten.
    fn members(&self, _all: &[Candidate]) {}

    /// How many bytes of prompts each worker's cache holds, by slot, as far as they tell.
    fn capacity(&self, _text: &[Option<u64>]) {}

    /// How many keys it remembers, where it remembers any.
    fn keys(&self) -> Option<usize> {
        None
    }

    /// Frees what nobody needs any more: called now and then, also while no request comes.
    fn sweep(&self, _now: Duration) {}
}

/// A policy's choice.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// The worker.
    pub candidate: &'a Candidate,
    /// Prompt tokens believed to be cached there.
    pub matched_tokens: u64,
    /// How it came about, where a policy has several ways.
    pub branch: Option<Branch>,
}

impl<'a> Pick<'a> {
    /// A choice that came about in this way.
    pub fn by(branch: Branch, candidate: &'a Candidate) -> Self {
        Self {
            branch: Some(branch),
            ..candidate.into()
        }
    }
}

impl<'a> From<&'a Candidate> for Pick<'a> {
    fn from(candidate: &'a Candidate) -> Self {
        Self {
            candidate,
            matched_tokens: 0,
            branch: None,
        }
    }
}

/// A candidate and what speaks for and against it.
#[derive(Clone, Copy, Debug)]
pub struct Ranked<'a> {
    /// The worker.
    pub candidate: &'a Candidate,
    /// Prompt tokens believed to be cached there.
    pub matched_tokens: u64,
    /// Prompt tokens waiting there before this request.
    pub queued_tokens: u64,
    /// Predicted cost, in tokens of prefill.
    pub cost: f64,
    /// Ranked last whatever its cost: too much waits there, or a guard excludes it.
    pub passed_over: bool,
}

/// The policies by name, as flags, fields and metrics spell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// Uniform chance.
    Random,
    /// Each in turn.
    RoundRobin,
    /// Longest shared prefix at the lowest cost.
    CacheAware,
    /// The less loaded of two drawn at random.
    PowerOfTwo,
    /// By request length (prefill pools).
    Bucket,
    /// Sticky by routing key.
    Manual,
    /// A ring of keys.
    ConsistentHashing,
    /// A ring of prompt prefixes.
    PrefixHash,
    /// The shortest predicted wait.
    LeastLoad,
}

impl PolicyKind {
    /// Every policy, in the order `PolicyType` numbers them.
    pub const ALL: [Self; 9] = [
        Self::Random,
        Self::RoundRobin,
        Self::CacheAware,
        Self::PowerOfTwo,
        Self::Bucket,
        Self::Manual,
        Self::ConsistentHashing,
        Self::PrefixHash,
        Self::LeastLoad,
    ];

    /// The name users write.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::CacheAware => "cache_aware",
            Self::PowerOfTwo => "power_of_two",
            Self::Bucket => "bucket",
            Self::Manual => "manual",
            Self::ConsistentHashing => "consistent_hashing",
            Self::PrefixHash => "prefix_hash",
            Self::LeastLoad => "least_load",
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

    /// Whether it keeps requests with the same key or prompt together, whatever the load.
    pub fn is_sticky(self) -> bool {
        matches!(
            self,
            Self::Manual | Self::ConsistentHashing | Self::PrefixHash
        )
    }

    /// A fresh instance.
    pub fn build(self, params: &Params) -> Box<dyn Policy> {
        match self {
            Self::Random => Box::new(random::Random),
            Self::RoundRobin => Box::new(round_robin::RoundRobin::default()),
            Self::CacheAware => Box::new(cache_aware::CacheAware::new(params)),
            Self::PowerOfTwo => Box::new(power_of_two::PowerOfTwo),
            Self::Bucket => Box::new(bucket::Bucket::new(params)),
            Self::Manual => Box::new(manual::Manual::new(params)),
            Self::ConsistentHashing => Box::new(consistent_hashing::ConsistentHashing::new(params)),
            Self::PrefixHash => Box::new(prefix_hash::PrefixHash::new(params)),
            Self::LeastLoad => Box::new(least_load::LeastLoad),
        }
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
