//! Which way a policy took to its choice.

use super::PolicyKind;

/// The ways that are worth telling apart, by the names dashboards know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// Whoever routes found nobody to choose from.
    NoHealthyWorkers,
    /// The client named the worker.
    TargetWorkerHit,
    /// The worker that the client named takes no requests.
    TargetWorkerMiss,
    /// A known key, at a home of its own.
    OccupiedHit,
    /// A known key whose homes are no candidates: it got one more.
    OccupiedMiss,
    /// A new key.
    Vacant,
    /// No key, so nothing to stick to.
    NoRoutingId,
    /// A key's own worker on the ring.
    RoutingKeyHit,
    /// No key: by chance.
    RandomFallback,
    /// A prompt's own worker on the ring.
    RingHit,
    /// That worker had too much to do: the next on the ring.
    LoadBalanceWalk,
    /// No prompt, so nothing to hash: the least loaded.
    NoTokens,
    /// None of the candidates is on the ring yet: the least loaded.
    FallbackLeastLoad,
}

impl Branch {
    /// Those that no policy takes: they are found before it is asked.
    pub const BEFORE: [Self; 3] = [
        Self::NoHealthyWorkers,
        Self::TargetWorkerHit,
        Self::TargetWorkerMiss,
    ];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHealthyWorkers => "no_healthy_workers",
            Self::TargetWorkerHit => "target_worker_hit",
            Self::TargetWorkerMiss => "target_worker_miss",
            Self::OccupiedHit => "occupied_hit",
            Self::OccupiedMiss => "occupied_miss",
            Self::Vacant => "vacant",
            Self::NoRoutingId => "no_routing_id",
            Self::RoutingKeyHit => "routing_key_hit",
            Self::RandomFallback => "random_fallback",
            Self::RingHit => "ring_hit",
            Self::LoadBalanceWalk => "load_balance_walk",
            Self::NoTokens => "no_tokens",
            Self::FallbackLeastLoad => "fallback_least_load",
        }
    }
}

impl PolicyKind {
    /// The branches its picks name; empty where there is but one way.
    pub fn branches(self) -> &'static [Branch] {
        match self {
            Self::Manual => &[
                Branch::OccupiedHit,
                Branch::OccupiedMiss,
                Branch::Vacant,
                Branch::NoRoutingId,
            ],
            Self::ConsistentHashing => &[
                Branch::RoutingKeyHit,
                Branch::LoadBalanceWalk,
                Branch::RandomFallback,
                Branch::FallbackLeastLoad,
            ],
            Self::PrefixHash => &[
                Branch::RingHit,
                Branch::LoadBalanceWalk,
                Branch::NoTokens,
                Branch::FallbackLeastLoad,
            ],
            _ => &[],
        }
    }
}
