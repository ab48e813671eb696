//! What the tests of policies share.

use std::sync::Arc;

use routing::{Candidate, Candidates, Policy, Request};

/// So many idle workers.
pub(crate) fn fleet(size: usize) -> Vec<Candidate> {
    let candidate = |slot| Candidate {
        slot,
        generation: 0,
        url: format!("http://worker-{slot}:80").into(),
        load: Arc::default(),
    };
    (0..size).map(candidate).collect()
}

/// The slot a policy picks.
pub(crate) fn slot(policy: &dyn Policy, all: &[Candidate], request: &Request<'_>) -> usize {
    let from = Candidates::new(all).unwrap();
    policy.pick(from, request).candidate.slot
}

/// How often each worker is picked over requests that differ by chance only.
pub(crate) fn shares(policy: &dyn Policy, all: &[Candidate], requests: u64) -> Vec<usize> {
    let mut shares = vec![0; all.len()];
    for seed in 0..requests {
        let request = Request {
            seed,
            ..Request::default()
        };
        shares[slot(policy, all, &request)] += 1;
    }
    shares
}
