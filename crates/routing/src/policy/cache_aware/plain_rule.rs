//! The rule of the policy, written as it reads and without regard to time: what the policy does in
//! fewer passes must come to the same choices.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::decode::MeanCosts;
use super::{CacheAware, CongestionFactor};
use crate::policy::{Balance, Params, Policy, TieBreak};
use crate::prefix::{BLOCK, PrefixIndex, hash_blocks, prompt_hash};
use crate::{Candidate, Candidates, DecodeCosts, Load, Prompt, Request, Work, rendezvous};

struct PlainRule {
    index: PrefixIndex,
    congestion: CongestionFactor,
    decode: MeanCosts,
    threshold: f64,
    balance: Option<Balance>,
    tie_break: TieBreak,
    gateways: u32,
}

/// One decision of it.
struct Decision<'a> {
    rule: &'a PlainRule,
    all: &'a [Candidate],
    request: &'a Request<'a>,
    matched: Vec<u32>,
    costs: DecodeCosts,
}

impl PlainRule {
    fn new(params: &Params) -> Self {
        Self {
            index: PrefixIndex::new(params.index_bytes, params.index_text),
            congestion: CongestionFactor::default(),
            decode: MeanCosts::default(),
            threshold: params.cache_threshold.unwrap_or(0.0),
            balance: params.balance,
            tie_break: params.tie_break,
            gateways: params.gateways,
        }
    }

    /// The slot that is chosen, and the tokens that are believed to be cached there.
    fn pick(&self, all: &[Candidate], request: &Request<'_>) -> Option<(usize, u64)> {
        let from = Candidates::new(all)?;
        let (mut blocks, mut matched) = (Vec::new(), Vec::new());
        hash_blocks(&request.prompt, &mut blocks);
        self.index.matches(&blocks, &mut matched);
        let decision = Decision {
            rule: self,
            all,
            request,
            matched,
            costs: self.decode.get(from),
        };
        self.congestion
            .observe_share(decision.utilisation(), all.len() as f64);
        let chosen = match decision.key(&blocks) {
            Some(key) => decision.heaviest_of_the_equal(key)?,
            None => from.cheapest(&mut request.rng(), |candidate| decision.cost(candidate)),
        };
        if !blocks.is_empty() {
            self.index.insert(&blocks, chosen);
        }
        let uncached = decision.uncached(chosen);
        Some((chosen.slot, request.prompt.tokens() - uncached))
    }
}

impl Decision<'_> {
    fn all_blocks(&self) -> f64 {
        self.request.prompt.bytes() as f64 / BLOCK as f64
    }

    fn held(&self, candidate: &Candidate) -> u32 {
        let held = self.matched.get(candidate.slot).copied().unwrap_or(0);
        if f64::from(held) < self.rule.threshold * self.all_blocks() {
            0
        } else {
            held
        }
    }

    fn longest(&self) -> u32 {
        let held = self.all.iter().map(|candidate| self.held(candidate));
        held.max().unwrap_or(0)
    }

    fn uncached(&self, candidate: &Candidate) -> u64 {
        let prompt = &self.request.prompt;
        let cached = prompt.to_tokens(u64::from(self.held(candidate)) * BLOCK as u64);
        prompt.tokens().saturating_sub(cached)
    }

    fn wait(&self, candidate: &Candidate) -> f64 {
        let queued = candidate.load.all_queued_tokens() as f64;
        queued + self.uncached(candidate) as f64 + candidate.crossing_tokens as f64
    }

    fn kv_tokens(&self, candidate: &Candidate) -> u64 {
        let work = Work {
            uncached: self.uncached(candidate),
            output: self.request.output_tokens,
        };
        work.kv_tokens()
    }

    fn lacks_memory(&self, candidate: &Candidate) -> bool {
        let (load, own) = (&candidate.load, self.kv_tokens(candidate));
        let taken = (load.all_kv_tokens() + own) as f64;
        let full = |capacity| taken > 1.1 * capacity as f64;
        self.costs.coupling >= 0.5 && load.kv_capacity().is_some_and(full)
    }

    fn has_too_many(&self, candidate: &Candidate) -> bool {
        let requests = |candidate: &Candidate| candidate.load.all_requests() as f64;
        let fewest = self.all.iter().map(requests).fold(f64::INFINITY, f64::min);
        self.rule.balance.is_some_and(|balance| {
            requests(candidate) > fewest * balance.relative + balance.absolute as f64
        })
    }

    /// A worker without memory may take the prompt only if it has more of it than all that have
    /// memory.
    fn is_out(&self, candidate: &Candidate) -> bool {
        let open = |it: &&Candidate| !self.lacks_memory(it) && !self.has_too_many(it);
        let fewest = self.all.iter().filter(open).map(|it| self.uncached(it));
        let fewest = fewest.min().unwrap_or(u64::MAX);
        self.has_too_many(candidate)
            || self.lacks_memory(candidate) && self.uncached(candidate) >= fewest
    }

    fn passed_over(&self, candidate: &Candidate) -> bool {
        let open = self.all.iter().filter(|candidate| !self.is_out(candidate));
        let waits = open.map(|candidate| self.wait(candidate));
        let shortest = waits.fold(f64::INFINITY, f64::min);
        let others = self.queued_by_others();
        let longest = (shortest + others) * self.rule.congestion.patience();
        let longest = longest - others + self.margin();
        self.is_out(candidate) || self.wait(candidate) > longest
    }

    /// The blocks that it lacks and others hold, each divided by its holders.
    fn lacking(&self, candidate: &Candidate) -> f64 {
        let holders = |block| {
            let holds = |it: &&Candidate| self.held(it) > block;
            self.all.iter().filter(holds).count() as f64
        };
        let lacking = self.held(candidate)..self.longest();
        lacking
            .rev()
            .fold(0.0, |sum, block| sum + 1.0 / holders(block))
    }

    fn congestion(&self, candidate: &Candidate) -> f64 {
        let prompt = &self.request.prompt;
        let surplus = self.rule.congestion.factor() - 1.0;
        let new = surplus * self.new_tokens();
        let per_block = surplus * prompt.tokens() as f64 / self.all_blocks().max(1.0);
        new + per_block * self.lacking(candidate)
    }

    /// Tokens that no worker holds.
    fn new_tokens(&self) -> f64 {
        let prompt = &self.request.prompt;
        let known = prompt.to_tokens(u64::from(self.longest()) * BLOCK as u64);
        prompt.tokens().saturating_sub(known) as f64
    }

    fn resolution(&self) -> f64 {
        let gateways = f64::from(self.rule.gateways);
        2.0 * (1.0 - 1.0 / gateways)
    }

    /// The share of workers where something is queued, of others as often as of this gateway.
    fn utilisation(&self) -> f64 {
        let busy = |it: &&Candidate| it.load.all_queued_tokens() > 0;
        let share = self.all.iter().filter(busy).count() as f64 / self.all.len() as f64;
        if self.rule.gateways == 1 {
            return share;
        }
        1.0 - (1.0 - share).powf(f64::from(self.rule.gateways))
    }

    /// Tokens that others have queued at each worker, as this gateway has on average.
    fn queued_by_others(&self) -> f64 {
        let queued = self.all.iter().map(|it| it.load.all_queued_tokens() as f64);
        let mean = queued.sum::<f64>() / self.all.len() as f64;
        (f64::from(self.rule.gateways) - 1.0) * mean
    }

    /// What costs of equal workers differ by at most.
    fn margin(&self) -> f64 {
        match self.rule.tie_break {
            TieBreak::Rendezvous => self.resolution() * self.new_tokens(),
            TieBreak::Random => 0.0,
        }
    }

    /// What equal workers are chosen by: a short prompt as a whole; of a long one, by rendezvous, the
    /// first block that no worker holds, or the last, with the first. Else by chance.
    fn key(&self, blocks: &[u64]) -> Option<u64> {
        let Some(first) = blocks.first() else {
            return prompt_hash(&self.request.prompt);
        };
        let new = blocks.get(self.longest() as usize).or(blocks.last())?;
        let by_rendezvous = self.rule.tie_break == TieBreak::Rendezvous;
        by_rendezvous.then_some(new ^ first.rotate_left(17))
    }

    fn heaviest_of_the_equal(&self, key: u64) -> Option<&Candidate> {
        let costs = self.all.iter().map(|candidate| self.cost(candidate));
        let lowest = costs.fold(f64::INFINITY, f64::min);
        let cheapest = self.all.iter().find(|it| self.cost(it) <= lowest)?;
        let is_equal = |it: &&Candidate| {
            let is_near = it.crossing_tokens == cheapest.crossing_tokens;
            is_near && self.cost(it) <= lowest + self.margin()
        };
        let equal = self.all.iter().filter(is_equal);
        equal.max_by_key(|candidate| rendezvous::weight(key, candidate))
    }

    fn decode(&self, candidate: &Candidate) -> f64 {
        let (load, costs) = (&candidate.load, self.costs);
        let stall = self.uncached(candidate) as f64 * load.all_occupied().decoding() as f64;
        let own = self.kv_tokens(candidate) as f64;
        let others = own * load.all_requests() as f64 + load.all_kv_tokens() as f64;
        let slower = self.request.output_tokens as f64 * costs.context * others;
        costs.coupling * (stall + slower)
    }

    fn cost(&self, candidate: &Candidate) -> f64 {
        if self.passed_over(candidate) {
            return f64::INFINITY;
        }
        self.wait(candidate) + self.congestion(candidate) + self.decode(candidate)
    }
}

/// Lets a worker's load learn that prefill holds up decode there, for so much of its time.
fn learn_costs(load: &Arc<Load>, share: f64) {
    let secs = Duration::from_secs_f64;
    for round in 0..32 {
        let prompt = 100 + 50 * (round % 7);
        let others = load.lease(1000 * (round % 5));
        let mut decoding = load.lease(0);
        decoding.first_token(secs(0.0));
        drop(others);
        load.lease(prompt).first_token(secs(0.001 * prompt as f64));
        let tokens = 20 + round % 11;
        let took = 0.01 * tokens as f64 + share * 0.001 * prompt as f64;
        decoding.last_token(secs(took), tokens + 1);
    }
}

/// A request, and what happens before it.
#[derive(Clone, Debug)]
struct Step {
    seed: u64,
    /// Blocks of each part of the prompt: of which text, and how many bytes.
    prompt: [(u8, usize); 2],
    output: u64,
    /// A worker gets another request with so many tokens, which waits or decodes.
    lease: (usize, u16, bool),
    /// So many requests end.
    ended: usize,
    /// Workers that are no candidates, as bits.
    missing: u32,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let part = (0..3_u8, prop_oneof![0..200_usize, Just(640), Just(1300)]);
    let step = (
        any::<u64>(),
        [part.clone(), part],
        0..800_u64,
        (0..12_usize, 0..3000_u16, any::<bool>()),
        0..3_usize,
        any::<u32>(),
    );
    let step = step.prop_map(|(seed, prompt, output, lease, ended, missing)| Step {
        seed,
        prompt,
        output,
        lease,
        ended,
        missing: missing & missing.rotate_left(7),
    });
    prop::collection::vec(step, 1..24)
}

/// Of a worker: its memory, how much prefill holds up decode there, where known, and the price of
/// another zone.
type Worker = (Option<u64>, Option<f64>, u64);

/// Up to 12 workers.
fn fleets() -> impl Strategy<Value = Vec<Worker>> {
    let memory = prop::option::of(500..20_000_u64);
    let share = prop::option::of(0.0..1.0);
    prop::collection::vec((memory, share, prop_oneof![Just(0), 0..900_u64]), 1..=12)
}

fn params() -> impl Strategy<Value = Params> {
    let balance = (1.0..3.0, 0..4_u64);
    let balance = balance.prop_map(|(relative, absolute)| Balance { relative, absolute });
    let threshold = prop::option::of(0.0..0.9);
    let tie_break = prop_oneof![Just(TieBreak::Rendezvous), Just(TieBreak::Random)];
    let params = (prop::option::of(balance), threshold, tie_break, 1..9_u32);
    params.prop_map(|(balance, cache_threshold, tie_break, gateways)| Params {
        index_bytes: 1 << 20,
        balance,
        cache_threshold,
        tie_break,
        gateways,
        ..Params::default()
    })
}

fn workers(fleet: &[Worker]) -> Vec<Candidate> {
    let worker = |(slot, (memory, share, crossing)): (usize, &Worker)| {
        let load = Arc::<Load>::default();
        load.set_kv_capacity(*memory);
        if let Some(share) = share {
            learn_costs(&load, *share);
        }
        Candidate {
            load,
            crossing_tokens: *crossing,
            ..Candidate::idle(slot, 0, format!("http://worker-{slot}:80"))
        }
    };
    fleet.iter().enumerate().map(worker).collect()
}

proptest! {
    #[test]
    fn policy_chooses_as_the_plain_rule(params in params(), fleet in fleets(), steps in steps()) {
        let all = workers(&fleet);
        let (policy, plain) = (CacheAware::new(&params), PlainRule::new(&params));
        policy.set_members(&all);
        plain.index.set_members(&all);
        let mut leases = Vec::new();
        for step in steps {
            let (worker, tokens, decodes) = step.lease;
            if let Some(worker) = all.get(worker) {
                let mut lease = worker.load.lease(u64::from(tokens));
                if decodes {
                    lease.first_byte();
                }
                leases.push(lease);
            }
            leases.drain(..step.ended.min(leases.len()));
            let mut from = all.clone();
            from.retain(|candidate| step.missing & (1 << candidate.slot) == 0);
            let Some(candidates) = Candidates::new(&from) else { continue };
            let [first, second] = step.prompt.map(|(text, bytes)| vec![b'a' + text; bytes]);
            let request = Request {
                prompt: Prompt::text([&first, &second, b""]),
                seed: step.seed,
                output_tokens: step.output,
                ..Request::default()
            };
            let pick = policy.pick(candidates, &request);
            let chosen = (pick.candidate.slot, pick.matched_tokens);
            prop_assert_eq!(Some(chosen), plain.pick(&from, &request));
        }
    }
}
