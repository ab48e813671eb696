//! By request length: short prompts do not wait behind long ones.

mod boundaries;

use std::sync::{Mutex, PoisonError};

use super::{Balance, Params, Policy};
use crate::{Candidate, Candidates, Pick, Request};
use boundaries::BucketBoundaries;

/// What is imbalance while nobody said: the flags' defaults.
const BALANCE: Balance = Balance {
    relative: 1.5,
    absolute: 64,
};

/// Every worker takes one range of prompt lengths, in configuration order, the shortest first.
///
/// The ranges begin as equal parts of 0–4096 bytes, the last one open-ended, and are re-cut
/// every `bucket_adjust_interval` so that the recent prompts' bytes fall into equal shares.
/// A length that is a whole share and more by itself belongs to several workers; the one with
/// the fewest recent bytes takes it. If a range's worker is no candidate, the nearest is taken.
///
/// Guard: when the bytes sent to the candidates within the last interval are out of balance
/// (most − least > `absolute` bytes and most > `relative` × least; 64 and 1.5 unless set), the
/// candidate with the fewest takes the request whatever its length. An empty prompt has no
/// length to go by: it goes where the fewest requests are in flight. Ties by chance.
#[derive(Debug)]
pub(super) struct Bucket {
    boundaries: Mutex<BucketBoundaries>,
    balance: Balance,
}

impl Bucket {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            boundaries: Mutex::new(BucketBoundaries::new(params.bucket_adjust_interval)),
            balance: params.balance.unwrap_or(BALANCE),
        }
    }

    fn unbalanced(&self, from: Candidates<'_>, boundaries: &BucketBoundaries) -> bool {
        let bytes = |candidate: &Candidate| boundaries.recent_bytes(candidate);
        let most = from.iter().map(bytes).max().unwrap_or(0);
        let least = from.iter().map(bytes).min().unwrap_or(0);
        most - least > self.balance.absolute && most as f64 > self.balance.relative * least as f64
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
        let mut boundaries = self
            .boundaries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        boundaries.advance(from, request.now);
        let candidate = if self.unbalanced(from, &boundaries) {
            from.cheapest(&mut rng, |candidate| boundaries.recent_bytes(candidate))
        } else {
            let buckets = boundaries.buckets(bytes);
            from.cheapest(&mut rng, |candidate| {
                let away = boundaries.distance(candidate, &buckets);
                (away, boundaries.recent_bytes(candidate))
            })
        };
        boundaries.record(candidate, bytes, request.now);
        candidate.into()
    }

    fn members(&self, all: &[Candidate]) {
        let mut boundaries = self
            .boundaries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        boundaries.members(all);
    }
}
