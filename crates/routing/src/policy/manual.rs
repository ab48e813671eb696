//! Sticky sessions, by routing key.

use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::{AssignmentMode, Branch, Params, Policy, TieBreak};
use crate::rendezvous;
use crate::sticky::{KeyTable, Lookup};
use crate::{Candidate, Candidates, Pick, Request};

/// Keeps a routing key at the worker that it was first assigned to. A worker that joins moves
/// no keys.
///
/// While that worker is no candidate, the key is assigned to a second one, and returns when the
/// first is back. Only when neither is a candidate is the key assigned to a third, which replaces
/// the first. Keys are known by their 64-bit hash. At most 500 000 are kept; a further one
/// replaces the least recently used. A key that is idle for longer than `max_idle` is forgotten.
/// Workers are known by their URL, so a worker that restarts keeps its keys.
///
/// The assignment mode chooses a worker for a new key, and for a request without a key: evenly, the
/// fewest requests in flight (then the fewest queued tokens), or the fewest keys served last. Ties
/// are broken by rendezvous hashing of the key, and so is the even choice: several gateways assign
/// a key alike. Without a key chance decides. With a shared state, what one gateway has assigned
/// holds for all ([`KeyTable`]).
#[derive(Debug)]
pub(super) struct Manual {
    keys: Arc<KeyTable>,
    assignment: AssignmentMode,
    tie_break: TieBreak,
}

impl Manual {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            keys: KeyTable::new(params.max_idle),
            assignment: params.assignment,
            tie_break: params.tie_break,
        }
    }

    /// A worker for a new key, or for a request without one.
    fn choose<'a>(
        &self,
        from: Candidates<'a>,
        request: &Request<'_>,
        key: Option<u64>,
        keys_at: impl Fn(&Candidate) -> usize,
    ) -> &'a Candidate {
        let key = key.filter(|_| self.tie_break == TieBreak::Rendezvous);
        let key = key.unwrap_or(request.seed);
        match self.assignment {
            AssignmentMode::Random => rendezvous::choose(from, key),
            AssignmentMode::MinLoad => rendezvous::cheapest(from, key, |candidate| {
                (candidate.load.requests(), candidate.load.queued_tokens())
            }),
            AssignmentMode::MinGroup => rendezvous::cheapest(from, key, keys_at),
        }
    }
}

impl Policy for Manual {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let mut keys = self.keys.lock();
        let Some(key) = request.key().map(|key| xxh3_64(key.as_bytes())) else {
            let worker = self.choose(from, request, None, |it| keys.keys_at(it));
            return Pick::by(Branch::NoRoutingId, worker);
        };
        let branch = match keys.find(key, from, request.now) {
            Lookup::Assigned(worker) => return Pick::by(Branch::OccupiedHit, worker),
            Lookup::Unavailable => Branch::OccupiedMiss,
            Lookup::Unknown => Branch::Vacant,
        };
        let worker = self.choose(from, request, Some(key), |it| keys.keys_at(it));
        keys.assign(key, worker, request.now);
        Pick::by(branch, worker)
    }

    fn with_params(&self, params: &Params) -> Option<Box<dyn Policy>> {
        self.keys.lock().set_max_idle(params.max_idle);
        Some(Box::new(Self {
            keys: Arc::clone(&self.keys),
            assignment: params.assignment,
            tie_break: params.tie_break,
        }))
    }

    fn key_table(&self) -> Option<&Arc<KeyTable>> {
        Some(&self.keys)
    }

    fn sweep(&self, now: Duration) {
        // The lock is released between small steps, so that no request waits long for it.
        while self.keys.lock().forget_idle(now) {}
    }

    fn branches() -> &'static [Branch] {
        &[
            Branch::OccupiedHit,
            Branch::OccupiedMiss,
            Branch::Vacant,
            Branch::NoRoutingId,
        ]
    }
}
