//! The policy: predicts the cost of a prompt at each worker and takes the lowest.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use super::{CongestionFactor, ReplicationDiscount};
use crate::policy::{Balance, Params, Pick, Policy, Ranked};
use crate::prefix::{BLOCK, PrefixIndex, hash_blocks, prompt_hash};
use crate::{Candidate, Candidates, Request, SeededRng};

/// Chooses the worker of lowest predicted cost
///
/// ```text
/// cost(w) = tokens queued at w + tokens of this prompt not cached at w
///           + (congestion - 1) × those tokens, each divided by the number of its holders
/// ```
///
/// The [`CongestionFactor`] grows with the load. So an idle fleet spreads prompts and a busy one
/// keeps prefixes together, without a knob. The [`ReplicationDiscount`] is the division by
/// holders.
///
/// A worker is considered only if the prompt would wait there at most
/// [`CongestionFactor::patience`] times as long as at the quickest worker. So a popular prefix
/// spreads to further workers before its queue is long.
#[derive(Debug)]
pub(crate) struct CacheAware {
    index: Arc<PrefixIndex>,
    congestion: Arc<CongestionFactor>,
    threshold: f64,
    balance: Option<Balance>,
}

thread_local! {
    /// Reused by all decisions of a thread, so that a decision allocates nothing.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Block hashes, matches and replicas of one decision.
#[derive(Default)]
struct Scratch {
    blocks: Vec<u64>,
    matched: Vec<u32>,
    replication: ReplicationDiscount,
}

/// The inputs of one decision.
struct CostModel<'a, 'm> {
    request: &'a Request<'a>,
    /// Leading blocks of the prompt that each worker holds, by slot.
    matched: &'m [u32],
    replication: &'m ReplicationDiscount,
    /// Congestion cost of a block that exactly one other worker holds, in tokens.
    block_surcharge: f64,
    /// Congestion cost of all tokens that no worker holds; the same at every worker.
    new_surcharge: f64,
    /// The most requests that a worker may have in flight.
    max_requests: f64,
    /// The most tokens that may precede the prompt's first byte, its own included.
    max_wait: f64,
    /// Fewer matched blocks than this count as none.
    min_blocks: f64,
}

/// The predicted cost of a prompt at a worker.
struct Cost {
    /// In tokens of prefill.
    tokens: f64,
    /// The worker must not take the prompt, whatever the cost.
    passed_over: bool,
}

impl CacheAware {
    pub(crate) fn new(params: &Params) -> Self {
        Self {
            index: Arc::new(PrefixIndex::new(params.index_bytes, params.index_text)),
            congestion: Arc::default(),
            threshold: params.cache_threshold.unwrap_or(0.0),
            balance: params.balance,
        }
    }

    /// Runs `decide` with the cost model of a request and the hashes of its prompt's blocks.
    fn with_costs<T>(
        &self,
        from: Candidates<'_>,
        request: &Request<'_>,
        decide: impl FnOnce(&CostModel<'_, '_>, &[u64]) -> T,
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
            let all_blocks = prompt.bytes() as f64 / BLOCK as f64;
            let min_blocks = self.threshold * all_blocks;
            replication.survey(
                from.iter()
                    .map(|candidate| matched_blocks(matched, min_blocks, candidate)),
            );
            let known = prompt.to_tokens(u64::from(replication.longest()) * BLOCK as u64);
            let mut costs = CostModel {
                request,
                matched,
                replication,
                block_surcharge: surplus * prompt.tokens() as f64 / all_blocks.max(1.0),
                new_surcharge: surplus * prompt.tokens().saturating_sub(known) as f64,
                max_requests: self.max_requests(from),
                max_wait: f64::INFINITY,
                min_blocks,
            };
            costs.max_wait = costs.shortest_wait(from) * self.congestion.patience();
            decide(&costs, blocks)
        })
    }

    fn max_requests(&self, from: Candidates<'_>) -> f64 {
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

/// Leading blocks of the prompt believed cached at a worker; 0 if fewer than `min_blocks`.
fn matched_blocks(matched: &[u32], min_blocks: f64, candidate: &Candidate) -> u32 {
    let blocks = matched.get(candidate.slot).copied().unwrap_or(0);
    if f64::from(blocks) < min_blocks {
        0
    } else {
        blocks
    }
}

impl CostModel<'_, '_> {
    fn matched_blocks(&self, candidate: &Candidate) -> u32 {
        matched_blocks(self.matched, self.min_blocks, candidate)
    }

    /// Prompt tokens believed cached at a worker.
    fn matched_tokens(&self, candidate: &Candidate) -> u64 {
        let bytes = u64::from(self.matched_blocks(candidate)) * BLOCK as u64;
        self.request.prompt.to_tokens(bytes)
    }

    /// Tokens before the prompt's first byte: those queued at the worker, and the prompt's own
    /// that are not cached there.
    fn wait(&self, candidate: &Candidate) -> f64 {
        let prompt = self.request.prompt.tokens();
        let uncached = prompt.saturating_sub(self.matched_tokens(candidate));
        candidate.load.queued_tokens() as f64 + uncached as f64
    }

    fn is_full(&self, candidate: &Candidate) -> bool {
        candidate.load.requests() as f64 > self.max_requests
    }

    /// The shortest wait at a worker that is not full.
    fn shortest_wait(&self, from: Candidates<'_>) -> f64 {
        let open = from.iter().filter(|candidate| !self.is_full(candidate));
        open.map(|candidate| self.wait(candidate))
            .fold(f64::INFINITY, f64::min)
    }

    fn cost(&self, candidate: &Candidate) -> Cost {
        let wait = self.wait(candidate);
        let lacking = self.replication.lacking(self.matched_blocks(candidate));
        Cost {
            tokens: wait + self.new_surcharge + self.block_surcharge * lacking,
            passed_over: wait > self.max_wait || self.is_full(candidate),
        }
    }
}

impl Policy for CacheAware {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        self.congestion.observe(from);
        self.with_costs(from, request, |costs, blocks| {
            let mut ties = match prompt_hash(&request.prompt) {
                // Too short for the index: equal prompts go to one worker, other things equal.
                Some(hash) if blocks.is_empty() => SeededRng::new(hash),
                _ => request.rng(),
            };
            let cheapest = from.cheapest(&mut ties, |candidate| {
                let cost = costs.cost(candidate);
                if cost.passed_over {
                    f64::INFINITY
                } else {
                    cost.tokens
                }
            });
            if !blocks.is_empty() {
                self.index.insert(blocks, cheapest);
            }
            Pick {
                matched_tokens: costs.matched_tokens(cheapest),
                ..cheapest.into()
            }
        })
    }

    fn rank<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Vec<Ranked<'a>> {
        let mut ranked: Vec<_> = self.with_costs(from, request, |costs, _| {
            let rank = |candidate: &'a Candidate| {
                let cost = costs.cost(candidate);
                Ranked {
                    candidate,
                    matched_tokens: costs.matched_tokens(candidate),
                    queued_tokens: candidate.load.queued_tokens(),
                    cost: cost.tokens,
                    passed_over: cost.passed_over,
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

    fn set_members(&self, all: &[Candidate]) {
        self.index.set_members(all);
    }

    /// Limits the index to blocks that a worker can still hold. An evicted block would make the
    /// wait look shorter than it is.
    fn index_bytes(&self) -> Option<usize> {
        Some(self.index.bytes())
    }

    fn set_cache_sizes(&self, bytes_by_slot: &[Option<u64>]) {
        self.index.set_cache_sizes(bytes_by_slot);
    }

    /// The size of the index stays.
    fn with_params(&self, params: &Params) -> Option<Box<dyn Policy>> {
        Some(Box::new(Self {
            index: Arc::clone(&self.index),
            congestion: Arc::clone(&self.congestion),
            threshold: params.cache_threshold.unwrap_or(0.0),
            balance: params.balance,
        }))
    }

    fn sweep(&self, _now: Duration) {
        while self.index.purge() {}
    }
}
