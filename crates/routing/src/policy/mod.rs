//! Policies: the one trait, and the one list of all of them.

#[macro_use]
mod list;

mod branch;
mod params;

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
