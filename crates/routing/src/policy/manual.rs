//! Sticky sessions, by routing key.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::{AssignmentMode, Branch, Params, Policy};
use crate::sticky::{Found, MAX_KEYS, Sticky};
use crate::{Candidate, Candidates, Pick, Request};

/// A key stays with the worker it was first given to; workers that are added move nobody.
///
/// While that worker is no candidate the key has a second home, and returns when the first is
/// back; only when neither is there does it get a new one. Keys are known by their 64-bit
/// hash, at most [`MAX_KEYS`] of them, the least recently used making room; a key idle for
/// longer than `max_idle` is forgotten. Homes are URLs: a worker that restarts keeps its keys.
///
/// New keys, and requests without one, are placed by the assignment mode: by chance, where
/// the fewest requests are in flight (then the fewest queued tokens), or where the fewest
/// keys were served last; ties by chance.
#[derive(Debug)]
pub(super) struct Manual {
    sticky: Mutex<Sticky>,
    assignment: AssignmentMode,
}

impl Manual {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            sticky: Mutex::new(Sticky::new(MAX_KEYS, params.max_idle)),
            assignment: params.assignment,
        }
    }

    fn place<'a>(
        &self,
        from: Candidates<'a>,
        request: &Request<'_>,
        sticky: &Sticky,
    ) -> &'a Candidate {
        let rng = &mut request.rng();
        match self.assignment {
            AssignmentMode::Random => from.wrapping(rng.index(from.count())),
            AssignmentMode::MinLoad => from.cheapest(rng, |candidate| {
                (candidate.load.requests(), candidate.load.queued_tokens())
            }),
            AssignmentMode::MinGroup => from.cheapest(rng, |candidate| sticky.keys_at(candidate)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sticky> {
        self.sticky.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Policy for Manual {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let mut sticky = self.lock();
        let Some(key) = request.key().map(|key| xxh3_64(key.as_bytes())) else {
            return Pick::by(Branch::NoRoutingId, self.place(from, request, &sticky));
        };
        let branch = match sticky.find(key, from, request.now) {
            Found::Assigned(assignee) => return Pick::by(Branch::OccupiedHit, assignee),
            Found::Away => Branch::OccupiedMiss,
            Found::Unknown => Branch::Vacant,
        };
        let candidate = self.place(from, request, &sticky);
        sticky.assign(key, candidate, request.now);
        Pick::by(branch, candidate)
    }

    fn keys(&self) -> Option<usize> {
        Some(self.lock().len())
    }

    fn sweep(&self, now: Duration) {
        // In small bites, so that no request waits long for its key.
        while self.lock().forget_idle(now) {}
    }
}
