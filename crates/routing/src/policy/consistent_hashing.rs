//! A ring of keys, with bounded loads.

use super::{Branch, Params, Policy};
use crate::hash_ring::{SharedRing, position};
use crate::{Candidates, Pick, Request};

/// A routing key goes to the first worker clockwise from it on the ring, so a worker that
/// comes or goes moves only its own share of the keys.
///
/// A worker with more than `ceil(load_factor × (requests in flight + 1) / workers)` requests
/// is passed over for the next on the ring (Mirrokni, Thorup & Zadimoghaddam, 2018): a
/// popular key spills instead of drowning its worker. What tells the client stands for a key
/// that is not there; requests without either go anywhere.
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
        let mut draw = request.rng();
        let key = request.key().map(str::as_bytes);
        let Some(key) = key.or_else(|| request.client_key?.bytes()) else {
            let anybody = from.wrapping(draw.index(from.count()));
            return Pick::by(Branch::RandomFallback, anybody);
        };
        let most = (self.factor * from.share_of_next()).ceil();
        let (ring, at) = (self.ring.read(from), position(key));
        ring.bounded(from, at, most, Branch::RoutingKeyHit)
            .unwrap_or_else(|| {
                let least = from.cheapest(&mut draw, |candidate| candidate.load.requests());
                Pick::by(Branch::FallbackLeastLoad, least)
            })
    }

    fn members(&self, all: &[crate::Candidate]) {
        self.ring.members(all);
    }
}
