//! The replay: arrivals, steps of workers and changes, in order of time.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use routing::prefix::BLOCK;
use routing::{Candidate, Candidates, Lease, Load, Pick, Policy, Prompt, Request};

use super::candidate_policy::CandidatePolicy;
use super::options::{Change, ChangeKind, FleetOptions};
use super::report::{Report, RunTotals};
use super::trace::Trace;
use super::worker::{Step, Worker};
use crate::engine::mix;

/// Requests between two calls of `progress`.
const TICK: usize = 512;

/// Replays a trace. `progress` is called with the number of requests so far and may stop the run;
/// then the result is `None`. The options must be valid.
pub fn simulate(
    trace: &Trace,
    options: &FleetOptions,
    candidate: &CandidatePolicy,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Option<Report> {
    let mut fleet = Fleet::new(trace, options, candidate.build(options));
    for request in 0..trace.len() {
        if request % TICK == 0 && progress(request).is_break() {
            return None;
        }
        let now = trace.at_ms(request) / 1000.0 / options.speed;
        fleet.run_until(now);
        fleet.route(request, now);
    }
    fleet.run_until(f64::MAX);
    progress(trace.len())
        .is_continue()
        .then(|| fleet.report(candidate.name()))
}

/// The fleet, and the gateway's view of it.
pub(super) struct Fleet<'t> {
    trace: &'t Trace,
    options: &'t FleetOptions,
    policy: Box<dyn Policy>,
    workers: Vec<Worker<'t>>,
    /// Time of each worker's next step, in seconds.
    next: Vec<f64>,
    loads: Vec<Arc<Load>>,
    /// The current workers, by slot.
    members: Vec<Candidate>,
    generation: u32,
    changes: Vec<Change>,
    leases: Vec<Option<Lease>>,
    prompt: Vec<u8>,
    decisions: u64,
    totals: RunTotals,
}

impl<'t> Fleet<'t> {
    pub(super) fn new(
        trace: &'t Trace,
        options: &'t FleetOptions,
        policy: Box<dyn Policy>,
    ) -> Self {
        let mut changes = options.changes.clone();
        // The first change is the last element, because changes are popped.
        changes.sort_by(|one, next| next.at_ms.total_cmp(&one.at_ms));
        let mut fleet = Self {
            trace,
            options,
            policy,
            workers: (0..options.workers)
                .map(|_| Worker::new(trace, options))
                .collect(),
            next: vec![f64::INFINITY; options.workers],
            loads: (0..options.workers).map(|_| Arc::default()).collect(),
            members: Vec::new(),
            generation: 0,
            changes,
            leases: (0..trace.len()).map(|_| None).collect(),
            prompt: Vec::new(),
            decisions: 0,
            totals: RunTotals::default(),
        };
        fleet.members = (0..options.workers)
            .map(|slot| fleet.candidate(slot))
            .collect();
        fleet.policy.set_members(&fleet.members);
        // Real workers report the size of their cache, so these do, too.
        let held = (options.cache_blocks() * BLOCK) as u64;
        fleet
            .policy
            .set_cache_sizes(&vec![Some(held); options.workers]);
        fleet
    }

    fn candidate(&self, slot: usize) -> Candidate {
        Candidate {
            slot,
            generation: self.generation,
            url: format!("http://worker-{slot}:30000").into(),
            load: Arc::clone(&self.loads[slot]),
        }
    }

    /// Processes every event up to and including `until`.
    pub(super) fn run_until(&mut self, until: f64) {
        loop {
            let change = self.changes.last().map_or(f64::INFINITY, |change| {
                change.at_ms / 1000.0 / self.options.speed
            });
            let (mut worker, mut soonest) = (0, f64::INFINITY);
            for (slot, &at) in self.next.iter().enumerate() {
                if at < soonest {
                    (worker, soonest) = (slot, at);
                }
            }
            if soonest <= until && soonest <= change {
                self.step(worker, soonest);
            } else if change <= until {
                self.change(change);
            } else {
                return;
            }
        }
    }

    fn step(&mut self, worker: usize, now: f64) {
        match self.workers[worker].step() {
            Some(Step::FirstToken(request)) => {
                let arrived = self.trace.at_ms(request) / 1000.0 / self.options.speed;
                self.totals.ttft.push(now - arrived);
                self.totals.last_token_at = now;
                if let Some(lease) = &mut self.leases[request] {
                    lease.first_byte();
                }
            }
            Some(Step::Finished(request)) => self.leases[request] = None,
            None => {}
        }
        self.next[worker] = self.workers[worker].next();
    }

    /// Chooses a worker for a request and sends it there.
    pub(super) fn route(&mut self, request: usize, now: f64) {
        self.write_prompt(request);
        self.decisions += 1;
        let asked = Request {
            model: Some("sim"),
            prompt: Prompt::text([&self.prompt, b"", b""]),
            now: Duration::from_secs_f64(now),
            seed: mix(self.options.seed, self.decisions),
            ..Request::default()
        };
        let Some(from) = Candidates::new(&self.members) else {
            self.totals.rejected += 1;
            return;
        };
        let (pick, took) = timed(|| self.policy.pick(from, &asked));
        let Pick {
            candidate,
            matched_tokens,
            ..
        } = pick;
        let uncached = asked.prompt.tokens().saturating_sub(matched_tokens);
        let (slot, lease) = (candidate.slot, candidate.load.lease(uncached));
        self.totals.add_decision(took);
        if self.workers[slot].submit(now, request) {
            self.leases[request] = Some(lease);
        } else {
            self.totals.rejected += 1;
        }
        self.next[slot] = self.workers[slot].next();
    }

    /// Writes a block of the index for each block of the trace. Tokens beyond the trace's blocks
    /// become text that no other request shares.
    fn write_prompt(&mut self, request: usize) {
        self.prompt.clear();
        for id in self.trace.ids(request) {
            self.prompt
                .extend_from_slice([id.to_le_bytes(); BLOCK / 8].as_flattened());
        }
        let tokens = self.trace.tokens(request, self.options.block_tokens);
        let bytes = tokens * BLOCK as u64 / u64::from(self.options.block_tokens);
        let own = (!(request as u64)).to_le_bytes();
        let missing = (bytes as usize).saturating_sub(self.prompt.len());
        self.prompt.extend(own.iter().cycle().take(missing));
    }

    fn change(&mut self, now: f64) {
        let Some(Change { worker, kind, .. }) = self.changes.pop() else {
            return;
        };
        let position = self
            .members
            .binary_search_by_key(&worker, |candidate| candidate.slot);
        self.generation += 1;
        match (kind, position) {
            (ChangeKind::Leave, Ok(position)) => self.leave(position, now),
            (ChangeKind::Join, Err(position)) => {
                let candidate = self.candidate(worker);
                self.members.insert(position, candidate);
                self.policy.set_members(&self.members);
            }
            (ChangeKind::Flush, Ok(position)) => {
                self.workers[worker].flush();
                self.members[position].generation = self.generation;
                self.policy.set_members(&self.members);
            }
            _ => {}
        }
    }

    fn leave(&mut self, position: usize, now: f64) {
        let worker = self.members.remove(position).slot;
        self.policy.set_members(&self.members);
        let lost = self.workers[worker].kill(now);
        self.next[worker] = self.workers[worker].next();
        self.totals.cut += lost.cut.len();
        self.totals.rerouted += lost.waiting.len();
        for request in lost.cut.iter().chain(&lost.waiting) {
            self.leases[*request] = None;
        }
        for request in lost.waiting {
            self.route(request, now);
        }
    }

    /// Requests in flight and queued tokens of all workers together.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> (usize, u64) {
        let requests = self.loads.iter().map(|load| load.requests()).sum();
        (
            requests,
            self.loads.iter().map(|load| load.queued_tokens()).sum(),
        )
    }

    /// Prompt tokens found in caches so far.
    #[cfg(test)]
    pub(super) fn cached_tokens(&self) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.work().cached_tokens)
            .sum()
    }

    pub(super) fn report(self, policy: &str) -> Report {
        let work: Vec<_> = self.workers.iter().map(Worker::work).collect();
        self.totals
            .report(policy, self.trace.len(), &work, self.options)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures this machine, affects no result but the timing"
)]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let done = work();
    (done, started.elapsed())
}
