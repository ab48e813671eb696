//! Where the prompt costs least: prefixes that are cached, queues, and those queued behind.

mod congestion;
mod replication;

use std::cell::RefCell;
use std::time::Duration;

use super::{Balance, Params, Pick, Policy, Ranked};
use crate::prefix::{BLOCK, PrefixIndex, hash_blocks};
use crate::{Candidate, Candidates, Request};
pub use congestion::CongestionFactor;
pub use replication::ReplicationDiscount;

/// Chooses the worker of lowest predicted cost
///
/// ```text
/// cost(w) = tokens queued at w + tokens of this prompt not cached at w
///           + (charge - 1) × those tokens, each divided by the number of workers that have it
/// ```
///
/// The [`CongestionFactor`] grows with the load. So an idle fleet spreads and a busy one keeps prefixes
/// together, with no knob to set; [`ReplicationDiscount`] says why what many workers have costs less to copy.
/// Only workers where the prompt itself would not wait
/// [`CongestionFactor::patience`] times as long as at the quickest are considered: a prefix that many ask
/// for spreads to further workers before its queue is long.
#[derive(Debug)]
pub(super) struct CacheAware {
    index: PrefixIndex,
    congestion: CongestionFactor,
    threshold: f64,
    balance: Option<Balance>,
}

thread_local! {
    /// Kept from decision to decision, so that deciding allocates nothing.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Block hashes, matches and copies of the decision at hand.
#[derive(Default)]
struct Scratch {
    blocks: Vec<u64>,
    matched: Vec<u32>,
    replication: ReplicationDiscount,
}

/// What one decision weighs.
struct Weighing<'a, 'm> {
    request: &'a Request<'a>,
    matched: &'m [u32],
    replication: &'m ReplicationDiscount,
    /// What a block that others have is charged beyond its own time, in tokens.
    block: f64,
    /// The same for all that nobody has: equal at every worker.
    unknown: f64,
    /// Most requests a worker may have in flight.
    most: f64,
    /// Most tokens that may come before the prompt's first byte, its own included.
    longest: f64,
    /// Fewer leading blocks than this are no affinity.
    fewest: f64,
}

impl CacheAware {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            index: PrefixIndex::new(params.index_bytes, params.index_text),
            congestion: CongestionFactor::default(),
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
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch {
                blocks,
                matched,
                replication,
            } = scratch;
            let (prompt, surplus) = (&request.prompt, self.congestion.factor() - 1.0);
            hash_blocks(prompt, blocks);
            self.index.matches(blocks, matched);
            let all = prompt.bytes() as f64 / BLOCK as f64;
            let fewest = self.threshold * all;
            replication.survey(
                from.iter()
                    .map(|candidate| affine(matched, fewest, candidate)),
            );
            let known = prompt.to_tokens(u64::from(replication.longest()) * BLOCK as u64);
            let mut weighing = Weighing {
                request,
                matched,
                replication,
                block: surplus * prompt.tokens() as f64 / all.max(1.0),
                unknown: surplus * prompt.tokens().saturating_sub(known) as f64,
                most: self.most(from),
                longest: f64::INFINITY,
                fewest,
            };
            weighing.longest = weighing.shortest(from) * self.congestion.patience();
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

/// Leading blocks of the prompt believed cached at a worker, if they are enough to matter.
fn affine(matched: &[u32], fewest: f64, candidate: &Candidate) -> u32 {
    let blocks = matched.get(candidate.slot).copied().unwrap_or(0);
    if f64::from(blocks) < fewest {
        0
    } else {
        blocks
    }
}

impl Weighing<'_, '_> {
    fn affine(&self, candidate: &Candidate) -> u32 {
        affine(self.matched, self.fewest, candidate)
    }

    /// Prompt tokens believed cached at a worker.
    fn matched(&self, candidate: &Candidate) -> u64 {
        let bytes = u64::from(self.affine(candidate)) * BLOCK as u64;
        self.request.prompt.to_tokens(bytes)
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
        let copied = self.block * self.replication.lacking(self.affine(candidate));
        (queued + new + self.unknown + copied, passed_over)
    }
}

impl Policy for CacheAware {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        self.congestion.observe(from);
        self.weigh(from, request, |weighing, blocks| {
            let cheapest = from.cheapest(&mut request.rng(), |candidate| {
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
