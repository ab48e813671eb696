//! Where the wait is shortest.

use super::{Policy, Ranked};
use crate::{Candidate, Candidates, Pick, Request};

/// What a request in flight adds to the cost, in prompt tokens: little beside any queue worth
/// the name, enough to tell apart workers whose queues are about the same.
const SLOT: u64 = 16;

/// Chooses the worker of lowest predicted wait, ties by chance:
///
/// ```text
/// cost(w) = prompt tokens queued at w + 16 × requests in flight at w
/// ```
///
/// A new request waits for the prompts before it, so queued tokens come first. Requests that
/// are decoding slow a worker down a little each; that breaks near-ties. Those that still
/// wait for their first byte are counted, too: they will decode next, and on endpoints
/// without a prompt they are all there is to see.
#[derive(Debug)]
pub(super) struct LeastLoad;

impl Policy for LeastLoad {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        from.cheapest(&mut request.rng(), cost).into()
    }

    fn rank<'a>(&self, from: Candidates<'a>, _request: &Request<'_>) -> Vec<Ranked<'a>> {
        let rank = |candidate: &'a Candidate| Ranked {
            candidate,
            matched_tokens: 0,
            queued_tokens: candidate.load.queued_tokens(),
            cost: cost(candidate) as f64,
            passed_over: false,
        };
        let mut ranked: Vec<_> = from.iter().map(rank).collect();
        ranked.sort_by(|one, other| one.cost.total_cmp(&other.cost));
        ranked
    }
}

fn cost(candidate: &Candidate) -> u64 {
    let slots = SLOT * candidate.load.requests() as u64;
    candidate.load.queued_tokens() + slots
}
