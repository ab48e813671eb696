//! Helpers of the tests of policies.

use routing::{Candidate, Candidates, Policy, Request};

/// `size` idle workers.
pub(crate) fn fleet(size: usize) -> Vec<Candidate> {
    let candidate = |slot| Candidate::idle(slot, 0, format!("http://worker-{slot}:80"));
    (0..size).map(candidate).collect()
}

/// The slot of the worker that a policy picks.
pub(crate) fn slot(policy: &dyn Policy, all: &[Candidate], request: &Request<'_>) -> usize {
    let from = Candidates::new(all).unwrap();
    policy.pick(from, request).candidate.slot
}

/// The number of picks of each worker, over requests that differ only by their seed.
pub(crate) fn picks_per_worker(
    policy: &dyn Policy,
    all: &[Candidate],
    requests: u64,
) -> Vec<usize> {
    let mut picks = vec![0; all.len()];
    for seed in 0..requests {
        let request = Request {
            seed,
            ..Request::default()
        };
        picks[slot(policy, all, &request)] += 1;
    }
    picks
}
