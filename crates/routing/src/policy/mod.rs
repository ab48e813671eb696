//! Policies: the one trait, and the one list of all of them.

mod random;
mod round_robin;

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::{Candidate, Candidates, Request};

/// Chooses a worker.
pub trait Policy: Send + Sync + Debug {
    /// The worker this request goes to. Must not block.
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> &'a Candidate;
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
}

impl PolicyKind {
    /// Every policy, in the order `PolicyType` numbers them.
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::RoundRobin,
        Self::CacheAware,
        Self::PowerOfTwo,
        Self::Bucket,
        Self::Manual,
        Self::ConsistentHashing,
        Self::PrefixHash,
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
        }
    }

    /// A fresh instance; `None` while the policy is not built.
    pub fn build(self) -> Option<Box<dyn Policy>> {
        match self {
            Self::Random => Some(Box::new(random::Random)),
            Self::RoundRobin => Some(Box::new(round_robin::RoundRobin::default())),
            Self::CacheAware
            | Self::PowerOfTwo
            | Self::Bucket
            | Self::Manual
            | Self::ConsistentHashing
            | Self::PrefixHash => None,
        }
    }
}
