//! The less loaded of two random workers.

use super::Policy;
use crate::{Candidate, Candidates, Pick, Request};

/// Samples two distinct candidates and takes the less loaded one.
///
/// Fewer requests in flight win, then fewer queued prompt tokens, then the first sample. Two
/// samples are enough to avoid the worst worker, and requests do not herd to the best one
/// (Mitzenmacher, 2001). A lone candidate is taken as it is.
#[derive(Debug)]
pub(super) struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let mut rng = request.rng();
        let count = from.count();
        let first = rng.index(count);
        // 1 to count - 1 places further, so never the first again.
        let second = first + 1 + rng.index(count - 1);
        let (first, second) = (from.wrapping(first), from.wrapping(second));
        if load(second) < load(first) {
            second.into()
        } else {
            first.into()
        }
    }
}

fn load(candidate: &Candidate) -> (usize, u64) {
    let load = &candidate.load;
    (load.all_requests(), load.all_queued_tokens())
}
