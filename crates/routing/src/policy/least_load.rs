//! The shortest predicted wait.

use super::{Policy, Ranked};
use crate::{Candidate, Candidates, Pick, Request};

/// Cost of a request in flight, in prompt tokens: small beside any real queue, large enough to
/// separate workers with nearly equal queues.
const TOKENS_PER_REQUEST: u64 = 16;

/// Chooses the worker of lowest predicted wait, ties at random:
///
/// ```text
/// cost(w) = prompt tokens queued at w + 16 × requests in flight at w
/// ```
///
/// A new request waits for the prompts before it, so queued tokens come first. Each decoding
/// request slows a worker down a little, which breaks near-ties. Requests that wait for their
/// first byte count, too: they decode next, and on endpoints without a prompt they are the only
/// sign of load.
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
            queued_tokens: candidate.load.all_queued_tokens(),
            cost: cost(candidate) as f64,
            passed_over: false,
        };
        let mut ranked: Vec<_> = from.iter().map(rank).collect();
        ranked.sort_by(|one, other| one.cost.total_cmp(&other.cost));
        ranked
    }
}

fn cost(candidate: &Candidate) -> u64 {
    let in_flight = TOKENS_PER_REQUEST * candidate.load.all_requests() as u64;
    candidate.load.all_queued_tokens() + in_flight
}
