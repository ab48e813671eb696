//! Where the prompt costs least: prefixes that are cached, queues, and those queued behind.

use std::cell::RefCell;
use std::time::Duration;

use super::{Balance, Params, Pick, Policy, Ranked};
use crate::prefix::{BLOCK, PrefixIndex, hash_blocks};
use crate::{Candidate, Candidates, Charge, Request};

/// Chooses the worker of lowest predicted cost
///
/// ```text
/// cost(w) = tokens queued at w + charge × tokens of this prompt not cached at w
/// ```
///
/// The [`Charge`] grows with the load. So an idle fleet spreads and a busy one keeps prefixes
/// together, with no knob to set. Only workers where the prompt itself would not wait
/// [`Charge::patience`] times as long as at the quickest are considered: a prefix that many ask
/// for spreads to further workers before its queue is long.
#[derive(Debug)]
pub(super) struct CacheAware {
    index: PrefixIndex,
    charge: Charge,
    threshold: f64,
    balance: Option<Balance>,
}

thread_local! {
    /// Block hashes and matches of the decision at hand: kept, so that deciding allocates nothing.
    static SCRATCH: RefCell<(Vec<u64>, Vec<u32>)> = RefCell::default();
}

/// What one decision weighs.
struct Weighing<'a, 'm> {
    request: &'a Request<'a>,
    matched: &'m [u32],
    charge: f64,
    /// Most requests a worker may have in flight.
    most: f64,
    /// Most tokens that may come before the prompt's first byte, its own included.
    longest: f64,
    threshold: f64,
}

impl CacheAware {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            index: PrefixIndex::new(params.index_bytes, params.index_text),
            charge: Charge::default(),
            threshold: params.cache_threshold.unwrap_or(0.0),
            balance: params.balance,
        }
    }

    /// Runs `decide` with what is known of the request's prompt.
    fn weigh<T>(
        &self,
        from: Candidates<'_>,
        request: &Request<'_>,
        decide: impl FnOnce(&Weighing<'_, '_>, &[u64]) -> T,
    ) -> T {
        SCRATCH.with_borrow_mut(|(blocks, matched)| {
            hash_blocks(&request.prompt, blocks);
            self.index.matches(blocks, matched);
            let mut weighing = Weighing {
                request,
                matched,
                charge: self.charge.factor(),
                most: self.most(from),
                longest: f64::INFINITY,
                threshold: self.threshold,
            };
            weighing.longest = weighing.shortest(from) * self.charge.patience();
            decide(&weighing, blocks)
        })
    }

    fn most(&self, from: Candidates<'_>) -> f64 {
        let Some(balance) = self.balance else {
            return f64::INFINITY;
        };
        let least = from
            .iter()
            .map(|candidate| candidate.load.requests())
            .min()
            .unwrap_or(0);
        least as f64 * balance.relative + balance.absolute as f64
    }
}

impl Weighing<'_, '_> {
    /// Prompt tokens believed cached at a worker.
    fn matched(&self, candidate: &Candidate) -> u64 {
        let blocks = self.matched.get(candidate.slot).copied().unwrap_or(0);
        let bytes = u64::from(blocks) * BLOCK as u64;
        let enough = bytes as f64 >= self.threshold * self.request.prompt.bytes() as f64;
        if enough {
            self.request.prompt.to_tokens(bytes)
        } else {
            0
        }
    }

    /// Tokens queued at a worker, and those of this prompt that are not cached there.
    fn work(&self, candidate: &Candidate) -> (f64, f64) {
        let prompt = self.request.prompt.tokens();
        let new = prompt.saturating_sub(self.matched(candidate));
        (candidate.load.queued_tokens() as f64, new as f64)
    }

    fn is_full(&self, candidate: &Candidate) -> bool {
        candidate.load.requests() as f64 > self.most
    }

    /// The fewest tokens that may come before the prompt's first byte.
    fn shortest(&self, from: Candidates<'_>) -> f64 {
        let wait = |candidate| {
            let (queued, new) = self.work(candidate);
            queued + new
        };
        let open = from.iter().filter(|candidate| !self.is_full(candidate));
        open.map(wait).fold(f64::INFINITY, f64::min)
    }

    /// The predicted cost, and whether that is beside the point: the prompt must not go there.
    fn cost(&self, candidate: &Candidate) -> (f64, bool) {
        let (queued, new) = self.work(candidate);
        let passed_over = queued + new > self.longest || self.is_full(candidate);
        (queued + self.charge * new, passed_over)
    }
}

impl Policy for CacheAware {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        self.charge.observe(from);
        self.weigh(from, request, |weighing, blocks| {
            let cheapest = from.cheapest(&mut request.draw(), |candidate| {
                match weighing.cost(candidate) {
                    (_, true) => f64::INFINITY,
                    (cost, false) => cost,
                }
            });
            if !blocks.is_empty() {
                self.index.insert(blocks, cheapest);
            }
            Pick {
                matched_tokens: weighing.matched(cheapest),
                ..cheapest.into()
            }
        })
    }

    fn rank<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Vec<Ranked<'a>> {
        let mut ranked: Vec<_> = self.weigh(from, request, |weighing, _| {
            let rank = |candidate: &'a Candidate| {
                let (cost, passed_over) = weighing.cost(candidate);
                Ranked {
                    candidate,
                    matched_tokens: weighing.matched(candidate),
                    queued_tokens: candidate.load.queued_tokens(),
                    cost,
                    passed_over,
                }
            };
            from.iter().map(rank).collect()
        });
        ranked.sort_by(|one, other| {
            let last = one.passed_over.cmp(&other.passed_over);
            last.then(one.cost.total_cmp(&other.cost))
        });
        ranked
    }

    fn members(&self, all: &[Candidate]) {
        self.index.members(all);
    }

    /// What a worker forgets is no longer believed of it: that would send requests to queues
    /// that look shorter than they are.
    fn capacity(&self, text: &[Option<u64>]) {
        self.index.capacity(text);
    }

    fn sweep(&self, _now: Duration) {
        while self.index.purge() {}
    }
}
