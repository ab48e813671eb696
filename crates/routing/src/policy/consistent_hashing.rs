//! A ring of routing keys, with bounded loads.

use super::{Branch, Params, Policy};
use crate::hash_ring::{Landing, SharedRing, position};
use crate::{Candidate, Candidates, Pick, Request};

/// Sends a routing key to the first worker clockwise from it on the ring. A worker that joins
/// or leaves moves only its own share of the keys.
///
/// A worker with more than `ceil(load_factor × (requests in flight + 1) / workers)` requests
/// is passed over for the next on the ring (Mirrokni, Thorup & Zadimoghaddam, 2018), so that a
/// popular key spills instead of overloading its worker. Without a routing key the client key
/// is used. A request without either goes to a random worker.
#[derive(Debug)]
pub(super) struct ConsistentHashing {
    ring: SharedRing,
    factor: f64,
}

impl ConsistentHashing {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            ring: SharedRing::default(),
            factor: params.load_factor.max(1.0),
        }
    }
}

impl Policy for ConsistentHashing {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let mut rng = request.rng();
        let key = request.key().map(str::as_bytes);
        let Some(key) = key.or_else(|| request.client_key?.bytes()) else {
            let random = from.wrapping(rng.index(from.count()));
            return Pick::by(Branch::RandomFallback, random);
        };
        let max_requests = (self.factor * from.mean_requests_with_next()).ceil();
        let landing = self
            .ring
            .ring_for(from)
            .bounded(from, position(key), max_requests);
        match landing {
            Some(Landing::Owner(worker)) => Pick::by(Branch::RoutingKeyHit, worker),
            Some(Landing::Spilled(worker)) => Pick::by(Branch::LoadBalanceWalk, worker),
            None => {
                let requests = |candidate: &Candidate| candidate.load.requests();
                Pick::by(Branch::FallbackLeastLoad, from.cheapest(&mut rng, requests))
            }
        }
    }

    fn set_members(&self, all: &[Candidate]) {
        self.ring.set_members(all);
    }

    fn branches() -> &'static [Branch] {
        &[
            Branch::RoutingKeyHit,
            Branch::LoadBalanceWalk,
            Branch::RandomFallback,
            Branch::FallbackLeastLoad,
        ]
    }
}
