//! The replay over prefill and decode workers: the legs of a request, in order of time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use routing::prefix::BLOCK;
use routing::{Candidate, Candidates, Lease, Policy, Prompt, Request};

use super::candidate_policy::PairPolicies;
use super::options::FleetOptions;
use super::report::{Report, RunTotals};
use super::run::timed;
use super::service::At;
use super::step::Step;
use super::trace::Trace;
use super::worker::Worker;
use crate::engine::mix;

/// Makes the seeds of decode decisions other ones than those of prefill.
const DECODE_SEED: u64 = 1 << 63;

/// The workers of one role, and their policy.
struct Pool<'t> {
    policy: Box<dyn Policy>,
    workers: Vec<Worker<'t>>,
    members: Vec<Candidate>,
    leases: Vec<Option<Lease>>,
    seed: u64,
    decisions: u64,
}

/// A fleet of pairs, and the gateway's view of it.
pub(super) struct Pairs<'t> {
    trace: &'t Trace,
    options: &'t FleetOptions,
    prefill: Pool<'t>,
    decode: Pool<'t>,
    /// The decode worker of each request.
    partners: Vec<usize>,
    /// KV caches under way, by the time of their arrival (positive floats order as their bits).
    transfers: BinaryHeap<Reverse<(u64, usize)>>,
    prompt: Vec<u8>,
    totals: RunTotals<'t>,
}

impl<'t> Pool<'t> {
    fn new(trace: &'t Trace, size: usize, options: &FleetOptions, policy: Box<dyn Policy>) -> Self {
        let member = |slot| Candidate::idle(slot, 0, format!("http://worker-{slot}:30000"));
        let members: Vec<Candidate> = (0..size).map(member).collect();
        let pool = Self {
            policy,
            workers: (0..size).map(|_| Worker::new(trace, options)).collect(),
            members,
            leases: (0..trace.len()).map(|_| None).collect(),
            seed: options.seed,
            decisions: 0,
        };
        pool.policy.set_members(&pool.members);
        let held = (options.cache_blocks() * BLOCK) as u64;
        pool.policy.set_cache_sizes(&vec![Some(held); size]);
        pool
    }

    /// The policy's choice, and the request's share of that worker.
    fn choose(&mut self, prompt: &[u8], now: f64) -> Option<(usize, Lease)> {
        self.decisions += 1;
        let asked = Request {
            model: Some("sim"),
            prompt: Prompt::text([prompt, b"", b""]),
            now: Duration::from_secs_f64(now),
            seed: mix(self.seed, self.decisions),
            ..Request::default()
        };
        let pick = self.policy.pick(Candidates::new(&self.members)?, &asked);
        let uncached = asked.prompt.tokens().saturating_sub(pick.matched_tokens);
        Some((pick.candidate.slot, pick.candidate.load.lease(uncached)))
    }

    /// The worker whose step is next, and when.
    fn next(&self) -> (usize, f64) {
        let steps = self.workers.iter().map(Worker::next).enumerate();
        let sooner = |one: (usize, f64), other: (usize, f64)| {
            if other.1 < one.1 { other } else { one }
        };
        steps.fold((0, f64::INFINITY), sooner)
    }
}

impl<'t> Pairs<'t> {
    pub(super) fn new(
        trace: &'t Trace,
        options: &'t FleetOptions,
        policies: &PairPolicies,
    ) -> Self {
        // A prefill worker is done with a request at its first token.
        let prefill = FleetOptions {
            output_scale: 0.0,
            ..options.clone()
        };
        // A decode worker gets prompts computed, and keeps none.
        let decode = FleetOptions {
            prefill_tps: f64::INFINITY,
            kv_tokens: 0,
            seed: options.seed ^ DECODE_SEED,
            ..options.clone()
        };
        let policy = |candidate: &super::CandidatePolicy| candidate.build(options, None);
        Self {
            trace,
            options,
            prefill: Pool::new(trace, options.prefill, &prefill, policy(&policies.prefill)),
            decode: Pool::new(trace, options.decode, &decode, policy(&policies.decode)),
            partners: vec![0; trace.len()],
            transfers: BinaryHeap::new(),
            prompt: Vec::new(),
            totals: RunTotals::new(trace, options),
        }
    }

    /// Chooses both workers of a request, and sends it to the prefill worker.
    pub(super) fn route(&mut self, request: usize, now: f64) {
        let block_tokens = self.options.block_tokens;
        self.trace
            .write_prompt(request, block_tokens, &mut self.prompt);
        let (prefill, decode, prompt) = (&mut self.prefill, &mut self.decode, &self.prompt);
        let (chosen, took) =
            timed(|| Some((prefill.choose(prompt, now)?, decode.choose(prompt, now)?)));
        self.totals.add_decision(took);
        let Some(((slot, prefill_lease), (partner, decode_lease))) = chosen else {
            self.totals.rejected += 1;
            return;
        };
        if !self.prefill.workers[slot].submit(now, request) {
            self.totals.rejected += 1;
            return;
        }
        self.partners[request] = partner;
        self.prefill.leases[request] = Some(prefill_lease);
        self.decode.leases[request] = Some(decode_lease.holding_tokens());
    }

    /// Processes every event up to and including `until`.
    pub(super) fn run_until(&mut self, until: f64) {
        loop {
            let (prefill, computed) = self.prefill.next();
            let (decode, generated) = self.decode.next();
            let arrival = self.transfers.peek();
            let arrival = arrival.map_or(f64::INFINITY, |Reverse((at, _))| f64::from_bits(*at));
            let now = computed.min(arrival).min(generated);
            if now > until || now.is_infinite() {
                return;
            }
            if computed <= now {
                self.compute(prefill, now);
            } else if arrival <= now {
                self.arrive(now);
            } else {
                self.generate(decode, now);
            }
        }
    }

    /// A step of a prefill worker.
    fn compute(&mut self, slot: usize, now: f64) {
        if let Some(Step::FirstToken { request, .. }) = self.prefill.workers[slot].step() {
            let tokens = self.trace.tokens(request, self.options.block_tokens) as f64;
            let takes = tokens * self.options.transfer_ms_per_1k_tokens / 1e6;
            self.transfers
                .push(Reverse(((now + takes).to_bits(), request)));
        }
    }

    /// A KV cache has come to its decode worker: the prefill worker is done.
    fn arrive(&mut self, now: f64) {
        let Some(Reverse((_, request))) = self.transfers.pop() else {
            return;
        };
        self.prefill.leases[request] = None;
        let partner = self.partners[request];
        if !self.decode.workers[partner].submit(now, request) {
            self.decode.leases[request] = None;
            self.totals.rejected += 1;
        }
    }

    /// A step of a decode worker.
    fn generate(&mut self, slot: usize, now: f64) {
        match self.decode.workers[slot].step() {
            Some(Step::FirstToken { request, .. }) => {
                self.totals.first_token(At { request, now });
                if let Some(lease) = &mut self.decode.leases[request] {
                    lease.first_byte();
                }
            }
            Some(Step::Finished(request)) => {
                self.totals.last_token(At { request, now });
                self.decode.leases[request] = None;
            }
            None => {}
        }
    }

    /// Requests in flight and tokens held at all workers together.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> (usize, u64) {
        let members = self.prefill.members.iter().chain(&self.decode.members);
        let loads: Vec<_> = members.map(|member| &member.load).collect();
        let requests = loads.iter().map(|load| load.requests()).sum();
        (
            requests,
            loads.iter().map(|load| load.queued_tokens()).sum(),
        )
    }

    pub(super) fn report(self, policies: &str) -> Report {
        let work: Vec<_> = self.prefill.workers.iter().map(Worker::work).collect();
        self.totals.report(policies, &work)
    }
}
