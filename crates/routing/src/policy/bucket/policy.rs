//! The policy: the bucket that a prompt belongs to, and the guard on balance.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::boundaries::BucketBoundaries;
use crate::policy::{Balance, Params, Policy};
use crate::{Candidate, Candidates, Pick, Request};

/// The limits of imbalance unless configured: the defaults of the flags.
const BALANCE: Balance = Balance {
    relative: 1.5,
    absolute: 64,
};

/// Gives every worker one range of prompt lengths, in configuration order, the shortest first.
///
/// The ranges begin as equal parts of 0–4096 bytes; the last one is open-ended. Every
/// `bucket_adjust_interval` they are recalculated so that the bytes of recent prompts fall into
/// equal shares. A length that fills a whole share by itself belongs to several workers; the one
/// with the fewest recent bytes takes it. If a range's worker is no candidate, the worker of the
/// nearest range takes its prompts.
///
/// Guard: the bytes sent within the last interval are out of balance if most − least >
/// `absolute` and most > `relative` × least (64 and 1.5 unless configured). Then the candidate
/// with the fewest bytes takes the request whatever its length. An empty prompt has no length:
/// it goes to the worker with the fewest requests in flight. Ties are broken at random.
#[derive(Debug)]
pub(crate) struct Bucket {
    boundaries: Arc<Mutex<BucketBoundaries>>,
    balance: Balance,
}

impl Bucket {
    pub(crate) fn new(params: &Params) -> Self {
        Self {
            boundaries: Arc::new(Mutex::new(BucketBoundaries::new(
                params.bucket_adjust_interval,
            ))),
            balance: params.balance.unwrap_or(BALANCE),
        }
    }

    fn is_unbalanced(&self, from: Candidates<'_>, boundaries: &BucketBoundaries) -> bool {
        let bytes = |candidate: &Candidate| boundaries.recent_bytes(candidate);
        let most = from.iter().map(bytes).max().unwrap_or(0);
        let least = from.iter().map(bytes).min().unwrap_or(0);
        most - least > self.balance.absolute && most as f64 > self.balance.relative * least as f64
    }

    fn lock(&self) -> MutexGuard<'_, BucketBoundaries> {
        self.boundaries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Policy for Bucket {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        let (mut rng, bytes) = (request.rng(), request.prompt.bytes());
        if bytes == 0 {
            return from
                .cheapest(&mut rng, |candidate| candidate.load.requests())
                .into();
        }
        let mut boundaries = self.lock();
        boundaries.advance(from, request.now);
        let candidate = if self.is_unbalanced(from, &boundaries) {
            from.cheapest(&mut rng, |candidate| boundaries.recent_bytes(candidate))
        } else {
            let buckets = boundaries.buckets(bytes);
            from.cheapest(&mut rng, |candidate| {
                let distance = boundaries.distance(candidate, &buckets);
                (distance, boundaries.recent_bytes(candidate))
            })
        };
        boundaries.record(candidate, bytes, request.now);
        candidate.into()
    }

    fn with_params(&self, params: &Params) -> Option<Box<dyn Policy>> {
        self.lock().set_interval(params.bucket_adjust_interval);
        Some(Box::new(Self {
            boundaries: Arc::clone(&self.boundaries),
            balance: params.balance.unwrap_or(BALANCE),
        }))
    }

    fn set_members(&self, all: &[Candidate]) {
        self.lock().set_members(all);
    }
}
