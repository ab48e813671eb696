//! The replay itself: arrivals, steps of workers and changes, in order of time.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use routing::prefix::BLOCK;
use routing::{Candidate, Candidates, Lease, Load, Pick, Policy, Prompt, Request};

use super::contender::Contender;
use super::options::{Change, ChangeKind, FleetOptions};
use super::report::{Report, Tally};
use super::trace::Trace;
use super::worker::{Step, Worker};
use crate::engine::mix;

/// Requests between two calls of `progress`.
const TICK: usize = 512;

/// Replays a trace; `progress` hears how many requests have arrived and may break it off.
///
/// `None` when it was broken off. The options must be valid.
pub fn simulate(
    trace: &Trace,
    options: &FleetOptions,
    contender: &Contender,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Option<Report> {
    let mut fleet = Fleet::new(trace, options, contender.build(options));
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
        .then(|| fleet.report(contender.name()))
}

/// The fleet, and the gateway's view of it.
pub(super) struct Fleet<'t> {
    trace: &'t Trace,
    options: &'t FleetOptions,
    policy: Box<dyn Policy>,
    workers: Vec<Worker<'t>>,
    /// When each worker's next step comes.
    next: Vec<f64>,
    loads: Vec<Arc<Load>>,
    /// The workers that are there, in order.
    present: Vec<Candidate>,
    generation: u32,
    changes: Vec<Change>,
    leases: Vec<Option<Lease>>,
    prompt: Vec<u8>,
    decisions: u64,
    tally: Tally,
}

impl<'t> Fleet<'t> {
    pub(super) fn new(
        trace: &'t Trace,
        options: &'t FleetOptions,
        policy: Box<dyn Policy>,
    ) -> Self {
        let mut changes = options.changes.clone();
        // The first comes last, to be popped.
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
            present: Vec::new(),
            generation: 0,
            changes,
            leases: (0..trace.len()).map(|_| None).collect(),
            prompt: Vec::new(),
            decisions: 0,
            tally: Tally::default(),
        };
        fleet.present = (0..options.workers)
            .map(|slot| fleet.candidate(slot))
            .collect();
        fleet.policy.members(&fleet.present);
        // A worker tells its cache's size, and so does this one.
        let held = (options.cache_blocks() * BLOCK) as u64;
        fleet.policy.capacity(&vec![Some(held); options.workers]);
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

    /// Lets everything up to and including `until` happen.
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
                self.tally.ttft.push(now - arrived);
                self.tally.last_token_at = now;
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
        let Some(from) = Candidates::new(&self.present) else {
            self.tally.rejected += 1;
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
        self.tally.decided(took);
        if self.workers[slot].submit(now, request) {
            self.leases[request] = Some(lease);
        } else {
            self.tally.rejected += 1;
        }
        self.next[slot] = self.workers[slot].next();
    }

    /// A block of the trace becomes a block of the index; what the trace counts beyond its
    /// blocks belongs to this request alone.
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
        let place = self
            .present
            .binary_search_by_key(&worker, |candidate| candidate.slot);
        self.generation += 1;
        match (kind, place) {
            (ChangeKind::Leave, Ok(place)) => self.leave(place, now),
            (ChangeKind::Join, Err(place)) => {
                let candidate = self.candidate(worker);
                self.present.insert(place, candidate);
                self.policy.members(&self.present);
            }
            (ChangeKind::Flush, Ok(place)) => {
                self.workers[worker].flush();
                self.present[place].generation = self.generation;
                self.policy.members(&self.present);
            }
            _ => {}
        }
    }

    fn leave(&mut self, place: usize, now: f64) {
        let worker = self.present.remove(place).slot;
        self.policy.members(&self.present);
        let lost = self.workers[worker].kill(now);
        self.next[worker] = self.workers[worker].next();
        self.tally.cut += lost.cut.len();
        self.tally.rerouted += lost.waiting.len();
        for request in lost.cut.iter().chain(&lost.waiting) {
            self.leases[*request] = None;
        }
        for request in lost.waiting {
            self.route(request, now);
        }
    }

    /// Requests in flight and tokens queued, all workers together.
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
        self.workers.iter().map(Worker::cached_tokens).sum()
    }

    pub(super) fn report(self, policy: &str) -> Report {
        let work = self
            .workers
            .iter()
            .map(|worker| (worker.prompt_tokens(), worker.cached_tokens()));
        let work: Vec<_> = work.collect();
        self.tally
            .report(policy, self.trace.len(), &work, self.options)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures this machine, decides nothing"
)]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let done = work();
    (done, started.elapsed())
}
