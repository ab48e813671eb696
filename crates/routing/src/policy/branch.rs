//! The reason for a choice, as metrics count it.

/// The reasons that metrics distinguish, by the names that dashboards use.
///
/// Each policy lists its own in [`Policy::branches`](super::Policy::branches).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// There was no candidate.
    NoHealthyWorkers,
    /// The client named the worker.
    TargetWorkerHit,
    /// The client named a worker that takes no requests.
    TargetWorkerMiss,
    /// A known key, at a worker assigned to it.
    OccupiedHit,
    /// A known key, whose workers are no candidates: it is assigned to one more.
    OccupiedMiss,
    /// A new key.
    Vacant,
    /// No key.
    NoRoutingId,
    /// The key's own worker on the ring.
    RoutingKeyHit,
    /// No key: a random worker.
    RandomFallback,
    /// The prompt's own worker on the ring.
    RingHit,
    /// The own worker was overloaded: the next on the ring.
    LoadBalanceWalk,
    /// No prompt, so nothing to hash: the least loaded worker.
    NoTokens,
    /// No candidate is on the ring yet: the least loaded worker.
    FallbackLeastLoad,
}

impl Branch {
    /// The branches of no policy: they are taken before the policy runs.
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
