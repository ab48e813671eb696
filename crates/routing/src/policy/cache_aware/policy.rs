//! The policy: predicts the cost of a prompt at each worker and takes the lowest.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use super::decode::{DecodeModel, MeanCosts};
use super::tie::{Near, TieBreaker};
use super::unseen::Unseen;
use super::{CongestionFactor, ReplicationDiscount};
use crate::candidate::cheapest;
use crate::policy::{Balance, Params, Pick, Policy, Ranked};
use crate::prefix::{BLOCK, CacheUse, Correction, Export, Prediction, PrefixIndex, hash_blocks};
use crate::replicas::{Journal, Sight};
use crate::{Candidate, Candidates, Request};

/// Chooses the worker of lowest predicted cost
///
/// ```text
/// cost(w) = tokens queued at w + tokens of this prompt not cached at w
///           + (congestion - 1) × those tokens, each divided by the number of its holders
///           + what all that decode at w lose by it
///           + the price of crossing, if w is in another zone
/// ```
///
/// The [`CongestionFactor`] grows with the load. So an idle fleet spreads prompts and a busy one
/// keeps prefixes together, without a knob. The [`ReplicationDiscount`] is the division by
/// holders.
///
/// A worker is considered only if the prompt would wait there at most
/// [`CongestionFactor::patience`] times as long as at the quickest worker. So a popular prefix
/// spreads to further workers before its queue is long.
///
/// Workers whose costs differ by less than the model can resolve are equal. Of those the
/// [`TieBreaker`] chooses one, so that gateways that know nothing of each other choose alike.
#[derive(Debug)]
pub(crate) struct CacheAware {
    index: Arc<PrefixIndex>,
    congestion: Arc<CongestionFactor>,
    decode: Arc<MeanCosts>,
    ties: TieBreaker,
    journal: Option<Arc<Journal>>,
    /// Gateways by the options, this one included.
    gateways: u32,
    threshold: f64,
    balance: Option<Balance>,
}

thread_local! {
    /// Reused by all decisions of a thread, so that a decision allocates nothing.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Block hashes, matches, replicas and what was read of each candidate, of one decision.
#[derive(Default)]
struct Scratch {
    blocks: Vec<u64>,
    matched: Vec<u32>,
    replication: ReplicationDiscount,
    readings: Vec<Reading>,
    near: Near,
}

/// A candidate as one decision sees it: read once, for loads change meanwhile and lie far apart.
struct Reading {
    /// The prompt's tokens that are not cached there.
    uncached: u64,
    /// Tokens before the prompt's first byte: those queued, those, and what crossing to another
    /// zone is worth.
    wait: f64,
    requests: f64,
    /// What decode there loses, in tokens of prefill.
    decode: f64,
    /// Leading blocks of the prompt that it holds.
    matched: u32,
    lacks_memory: bool,
}

/// What the pass that reads all candidates finds besides.
struct Survey {
    /// Candidates where prompts are queued.
    busy: usize,
    /// Tokens of these.
    queued: f64,
    /// The shortest wait.
    shortest: f64,
    /// Some candidate lacks memory.
    any_lacks_memory: bool,
}

/// What is not known of waits.
#[derive(Clone, Copy)]
struct Blur {
    /// Costs that differ by no more are equal.
    margin: f64,
    /// Tokens that other gateways have queued at each worker, on average.
    others: f64,
}

/// What costs are computed for.
#[derive(Clone, Copy, PartialEq)]
enum Purpose {
    /// A decision, from which the policy learns.
    Decide,
    /// A look at costs, which changes nothing.
    Explain,
}

/// The inputs of one decision.
struct CostModel<'m> {
    readings: &'m [Reading],
    replication: &'m ReplicationDiscount,
    /// Congestion cost of a block that exactly one other worker holds, in tokens.
    block_surcharge: f64,
    /// Congestion cost of all tokens that no worker holds; the same at every worker.
    new_surcharge: f64,
    /// Costs that differ by no more are equal.
    margin: f64,
    limits: Limits,
}

/// What no worker must exceed.
struct Limits {
    /// The most requests that a worker may have in flight.
    requests: f64,
    /// The most tokens that may precede the prompt's first byte, its own included.
    wait: f64,
    /// A worker without memory must have fewer tokens to compute than this: the fewest of those
    /// with memory.
    uncached: u64,
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
            decode: Arc::default(),
            ties: TieBreaker(params.tie_break),
            journal: params.journal.clone(),
            gateways: params.gateways,
            threshold: params.cache_threshold.unwrap_or(0.0),
            balance: params.balance,
        }
    }

    /// Runs `decide` with the cost model of a request and the hashes of its prompt's blocks.
    fn with_costs<T>(
        &self,
        from: Candidates<'_>,
        request: &Request<'_>,
        purpose: Purpose,
        use_costs: impl FnOnce(&CostModel<'_>, &[u64], &mut Near) -> T,
    ) -> T {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch {
                blocks,
                matched,
                replication,
                readings,
                near,
            } = scratch;
            let prompt = &request.prompt;
            hash_blocks(prompt, blocks);
            self.index.matches(blocks, matched);
            let all_blocks = prompt.bytes() as f64 / BLOCK as f64;
            let min_blocks = self.threshold * all_blocks;
            let decode = DecodeModel {
                output: request.output_tokens,
                costs: match purpose {
                    Purpose::Decide => self.decode.get(from),
                    Purpose::Explain => self.decode.known(),
                },
            };
            let survey = read_all(
                from,
                request,
                decode,
                |candidate| matched_blocks(matched, min_blocks, candidate),
                readings,
            );
            let unseen = self.unseen();
            let count = readings.len() as f64;
            if purpose == Purpose::Decide {
                let busy = unseen.utilisation(survey.busy as f64 / count);
                self.congestion.observe_share(busy, count);
            }
            let surplus = self.congestion.factor() - 1.0;
            replication.survey(readings.iter().map(|reading| reading.matched));
            let known = prompt.to_tokens(u64::from(replication.longest()) * BLOCK as u64);
            let new = prompt.tokens().saturating_sub(known) as f64;
            let margin = self.ties.margin(unseen.margin(new));
            let others = unseen.queued_tokens(survey.queued / count);
            let costs = CostModel {
                limits: self.limits(readings, &survey, Blur { margin, others }),
                margin,
                readings,
                replication,
                block_surcharge: surplus * prompt.tokens() as f64 / all_blocks.max(1.0),
                new_surcharge: surplus * new,
            };
            use_costs(&costs, blocks, near)
        })
    }

    fn unseen(&self) -> Unseen {
        let journal = self.journal.as_ref();
        let sight = journal.map_or(Sight::Unheard, |journal| journal.sight());
        Unseen::new(self.gateways, sight)
    }

    /// Records that the worker gets a prompt of these blocks.
    fn place(&self, blocks: &[u64], at: &Candidate) -> Option<CacheUse> {
        if blocks.is_empty() {
            return None;
        }
        if let Some(journal) = &self.journal {
            journal.note(at.url_hash, blocks);
        }
        self.index.insert(blocks, at)
    }

    fn limits(&self, readings: &[Reading], survey: &Survey, blur: Blur) -> Limits {
        let mut limits = Limits {
            requests: f64::INFINITY,
            wait: f64::INFINITY,
            uncached: u64::MAX,
        };
        let mut shortest = survey.shortest;
        // Usually no candidate is out by anything but its wait.
        if self.balance.is_some() || survey.any_lacks_memory {
            if let Some(balance) = self.balance {
                let requests = readings.iter().map(|reading| reading.requests);
                let fewest = requests.fold(f64::INFINITY, f64::min);
                limits.requests = fewest * balance.relative + balance.absolute as f64;
            }
            let with_memory = readings
                .iter()
                .filter(|reading| !reading.lacks_memory && reading.requests <= limits.requests);
            let fewest = with_memory.map(|reading| reading.uncached).min();
            limits.uncached = fewest.unwrap_or(u64::MAX);
            let open = readings.iter().filter(|reading| !limits.exclude(reading));
            let waits = open.map(|reading| reading.wait);
            shortest = waits.fold(f64::INFINITY, f64::min);
        }
        let longest = (shortest + blur.others) * self.congestion.patience();
        limits.wait = longest - blur.others + blur.margin;
        limits
    }
}

/// Reads every candidate; `held` says how many leading blocks of the prompt it holds.
fn read_all(
    from: Candidates<'_>,
    request: &Request<'_>,
    decode: DecodeModel,
    held: impl Fn(&Candidate) -> u32,
    readings: &mut Vec<Reading>,
) -> Survey {
    let prompt = &request.prompt;
    let tokens = prompt.tokens();
    // Most hold nothing of it, and most others as much as each other.
    let nothing = decode.prefill(tokens);
    let mut last = (0, nothing);
    let mut survey = Survey {
        busy: 0,
        queued: 0.0,
        shortest: f64::INFINITY,
        any_lacks_memory: false,
    };
    readings.clear();
    readings.extend(from.iter().map(|candidate| {
        let matched = held(candidate);
        let prefill = if matched == 0 {
            nothing
        } else {
            if matched != last.0 {
                let cached = prompt.to_tokens(u64::from(matched) * BLOCK as u64);
                last = (matched, decode.prefill(tokens.saturating_sub(cached)));
            }
            last.1
        };
        let load = &*candidate.load;
        let (queued, occupied) = (load.all_queued_tokens(), load.all_occupied());
        let queued_tokens = queued as f64;
        let reading = Reading {
            uncached: prefill.uncached,
            wait: queued_tokens + prefill.tokens + candidate.crossing_tokens as f64,
            requests: occupied.requests as f64,
            decode: decode.cost(occupied, prefill),
            matched,
            lacks_memory: decode.lacks_memory(occupied, prefill),
        };
        survey.busy += usize::from(queued > 0);
        survey.queued += queued_tokens;
        survey.shortest = survey.shortest.min(reading.wait);
        survey.any_lacks_memory |= reading.lacks_memory;
        reading
    }));
    survey
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

impl Limits {
    fn exclude(&self, reading: &Reading) -> bool {
        reading.requests > self.requests
            || reading.wait > self.wait
            || reading.lacks_memory && reading.uncached >= self.uncached
    }
}

impl CostModel<'_> {
    fn cost(&self, reading: &Reading) -> Cost {
        let lacking = self.replication.lacking(reading.matched);
        let surcharge = self.new_surcharge + self.block_surcharge * lacking;
        Cost {
            tokens: reading.wait + surcharge + reading.decode,
            passed_over: self.limits.exclude(reading),
        }
    }

    /// The cost in tokens, infinite if the worker must not take the prompt.
    fn open_cost(&self, reading: &Reading) -> f64 {
        let cost = self.cost(reading);
        if cost.passed_over {
            f64::INFINITY
        } else {
            cost.tokens
        }
    }

    /// Leading blocks of the prompt that some worker holds.
    fn known_blocks(&self) -> usize {
        self.replication.longest() as usize
    }
}

impl Policy for CacheAware {
    fn pick<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Pick<'a> {
        self.with_costs(from, request, Purpose::Decide, |costs, blocks, near| {
            let all = costs.readings.iter();
            let at = match self.ties.key(request, blocks, costs.known_blocks()) {
                Some(key) => {
                    near.collect(all.map(|it| costs.open_cost(it)), costs.margin);
                    near.heaviest(from, key)
                }
                None => cheapest(all, &mut request.rng(), |it| costs.open_cost(it)),
            };
            let cheapest = from.wrapping(at);
            let used = self.place(blocks, cheapest);
            let reading = costs.readings.get(at);
            let uncached = reading.map_or(u64::MAX, |reading| reading.uncached);
            let matched_tokens = request.prompt.tokens().saturating_sub(uncached);
            Pick {
                matched_tokens,
                prediction: used.map(|used| Prediction::new(used, matched_tokens, &request.prompt)),
                ..cheapest.into()
            }
        })
    }

    fn rank<'a>(&self, from: Candidates<'a>, request: &Request<'_>) -> Vec<Ranked<'a>> {
        let mut ranked: Vec<_> = self.with_costs(from, request, Purpose::Explain, |costs, _, _| {
            let rank = |(candidate, reading): (&'a Candidate, &Reading)| {
                let cost = costs.cost(reading);
                Ranked {
                    candidate,
                    matched_tokens: request.prompt.tokens() - reading.uncached,
                    queued_tokens: candidate.load.all_queued_tokens(),
                    cost: cost.tokens,
                    passed_over: cost.passed_over,
                }
            };
            from.iter().zip(costs.readings).map(rank).collect()
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

    fn correct(&self, correction: &Correction) {
        self.index.correct(correction);
    }

    fn learn(&self, blocks: &[u64], at: &Candidate) {
        self.index.insert(blocks, at);
    }

    fn begin_export(&self, most: usize) -> Option<Export> {
        Some(self.index.begin_export(most))
    }

    fn export(&self, export: &mut Export, visit: &mut dyn FnMut(&[u64], &[usize])) {
        self.index.export(export, visit);
    }

    fn index_bytes(&self) -> Option<usize> {
        Some(self.index.bytes())
    }

    /// Limits the index to blocks that a worker can still hold. An evicted block would make the
    /// wait look shorter than it is.
    fn set_cache_sizes(&self, bytes_by_slot: &[Option<u64>]) {
        self.index.set_cache_sizes(bytes_by_slot);
    }

    /// The size of the index stays.
    fn with_params(&self, params: &Params) -> Option<Box<dyn Policy>> {
        Some(Box::new(Self {
            index: Arc::clone(&self.index),
            congestion: Arc::clone(&self.congestion),
            decode: Arc::clone(&self.decode),
            ties: TieBreaker(params.tie_break),
            journal: params.journal.clone(),
            gateways: params.gateways,
            threshold: params.cache_threshold.unwrap_or(0.0),
            balance: params.balance,
        }))
    }

    fn sweep(&self, _now: Duration) {
        while self.index.purge() {}
    }
}
