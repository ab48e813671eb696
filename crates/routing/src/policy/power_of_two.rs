//! The less loaded of two drawn at random.

use super::Policy;
use crate::{Candidate, Candidates, Pick, Request};

/// Draws two distinct candidates; fewer requests in flight wins, then fewer queued prompt
/// tokens, then the first drawn. Two looks are enough to avoid the worst worker, and nobody
/// herds to the best one (Mitzenmacher, 2001). A lone candidate is taken as it is.
#[derive(Debug)]
pub(super) struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let mut rng = request.rng();
        let count = from.count();
        let first = rng.index(count);
        // So many further round the list, but not all the way round.
        let second = first + 1 + rng.index(count - 1);
        let (first, second) = (from.wrapping(first), from.wrapping(second));
        if burden(second) < burden(first) {
            second.into()
        } else {
            first.into()
        }
    }
}

fn burden(candidate: &Candidate) -> (usize, u64) {
    (candidate.load.requests(), candidate.load.queued_tokens())
}
