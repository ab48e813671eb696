//! The replay: arrivals, steps of workers and changes, in order of time.

use std::time::{Duration, Instant};

use routing::prefix::Prediction;
use routing::{Candidate, Candidates, Lease, Outcome, Pick, Prompt, Request, Trial, Work};

use super::candidate_policy::CandidatePolicy;
use super::faults::{Condition, Knowledge, condition, next_change};
use super::gateways::Gateways;
use super::guards::{ATTEMPTS, End, FirstToken, Guards};
use super::options::{Change, ChangeKind, FleetOptions};
use super::report::{Report, RunTotals};
use super::service::At;
use super::step::Step;
use super::trace::Trace;
use super::worker::Worker;
use crate::engine::mix;

/// The policy's choice.
struct Chosen {
    slot: usize,
    /// Prompt tokens that the worker has to compute, as the policy expects.
    uncached: u64,
    lease: Lease,
    prediction: Option<Prediction>,
}

/// A request at its worker.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    worker: usize,
    begun: f64,
    /// Prompt tokens that the policy expects the worker to compute.
    uncached: u64,
    trial: Option<Trial>,
}

/// The fleet, and the gateways in front of it.
pub(super) struct Fleet<'t> {
    trace: &'t Trace,
    options: &'t FleetOptions,
    gateways: Gateways<'t>,
    workers: Vec<Worker<'t>>,
    /// Time of each worker's next step, in seconds.
    next: Vec<f64>,
    changes: Vec<Change>,
    leases: Vec<Option<Lease>>,
    guards: Guards,
    conditions: Vec<Condition>,
    /// Time of the next change of any, in seconds.
    next_condition: f64,
    attempts: Vec<Option<Attempt>>,
    prompt: Vec<u8>,
    decisions: u64,
    totals: RunTotals<'t>,
}

impl<'t> Fleet<'t> {
    pub(super) fn new(
        trace: &'t Trace,
        options: &'t FleetOptions,
        candidate: &CandidatePolicy,
    ) -> Self {
        let mut changes = options.changes.clone();
        // The first change is the last element, because changes are popped.
        changes.sort_by(|one, next| next.at_ms.total_cmp(&one.at_ms));
        let mut fleet = Self {
            trace,
            options,
            gateways: Gateways::new(trace, options, candidate),
            workers: (0..options.workers)
                .map(|_| Worker::new(trace, options))
                .collect(),
            next: vec![f64::INFINITY; options.workers],
            changes,
            leases: (0..trace.len()).map(|_| None).collect(),
            guards: Guards::new(options.workers),
            conditions: vec![Condition::Well; options.workers],
            next_condition: f64::INFINITY,
            attempts: vec![
                None;
                if options.faults.is_empty() {
                    0
                } else {
                    trace.len()
                }
            ],
            prompt: Vec::new(),
            decisions: 0,
            totals: RunTotals::new(trace, options),
        };
        if !options.faults.is_empty() {
            fleet.change_conditions(0.0);
        }
        fleet
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
            let due = self.next_condition.min(self.next_check());
            let due = due.min(self.gateways.next());
            if soonest <= until && soonest <= change.min(due) {
                self.step(worker, soonest);
            } else if change <= until && change <= due {
                self.change(change);
            } else if due <= until && (soonest.is_finite() || until < f64::MAX) {
                self.check(due);
            } else {
                return;
            }
        }
    }

    fn step(&mut self, worker: usize, now: f64) {
        match self.workers[worker].step() {
            Some(Step::FirstToken { request, cached }) => {
                self.totals.first_token(At { request, now });
                if let Some(lease) = &mut self.leases[request] {
                    self.gateways.first_token(request, now, cached, lease);
                }
                if let Some(Some(attempt)) = self.attempts.get_mut(request) {
                    let (waited, tokens) = (now - attempt.begun, attempt.uncached);
                    let first = FirstToken { waited, tokens };
                    self.guards
                        .first_token(worker, first, attempt.trial.as_mut());
                }
            }
            Some(Step::Finished(request)) => {
                self.totals.last_token(At { request, now });
                if let Some(lease) = self.leases[request].take() {
                    self.gateways.last_token(request, now, lease);
                }
                self.end_attempt(request, Outcome::Answered(200), now);
            }
            None => {}
        }
        self.next[worker] = self.workers[worker].next();
    }

    /// Chooses a worker for a request and sends it there.
    pub(super) fn route(&mut self, request: usize, now: f64) {
        if !self.options.faults.is_empty() {
            self.guards.begin_request();
            self.route_among_faults(request, now, Vec::new());
            return;
        }
        let Some(chosen) = self.choose(request, now, None) else {
            self.totals.rejected += 1;
            return;
        };
        self.submit(request, now, chosen);
    }

    fn submit(&mut self, request: usize, now: f64, chosen: Chosen) -> bool {
        let Chosen {
            slot,
            lease,
            prediction,
            ..
        } = chosen;
        self.gateways.sent(request, now, prediction);
        let taken = self.workers[slot].submit(now, request);
        if taken {
            self.leases[request] = Some(lease);
        } else {
            self.totals.rejected += 1;
        }
        self.next[slot] = self.workers[slot].next();
        taken
    }

    /// The choice of the request's gateway among all members, or among those in these slots.
    fn choose(&mut self, request: usize, now: f64, slots: Option<&[usize]>) -> Option<Chosen> {
        let block_tokens = self.options.block_tokens;
        self.trace
            .write_prompt(request, block_tokens, &mut self.prompt);
        self.decisions += 1;
        let gateway = self.gateways.of(request);
        let asked = Request {
            model: Some("sim"),
            prompt: Prompt::text([&self.prompt, b"", b""]),
            now: Duration::from_secs_f64(now),
            seed: mix(self.options.seed, self.decisions),
            output_tokens: gateway.replies.expected(request),
            ..Request::default()
        };
        let within: Vec<Candidate>;
        let members = match slots {
            None => &gateway.members,
            Some(slots) => {
                let members = gateway.members.iter();
                within = members
                    .filter(|member| slots.contains(&member.slot))
                    .cloned()
                    .collect();
                &within
            }
        };
        let from = Candidates::new(members)?;
        let (pick, took) = timed(|| gateway.policy.pick(from, &asked));
        let Pick {
            candidate,
            matched_tokens,
            prediction,
            ..
        } = pick;
        let uncached = asked.prompt.tokens().saturating_sub(matched_tokens);
        let work = Work {
            uncached,
            output: asked.output_tokens,
        };
        let (slot, lease) = (candidate.slot, candidate.load.lease(work));
        self.totals.add_decision(took);
        Some(Chosen {
            slot,
            uncached,
            lease,
            prediction,
        })
    }

    fn change(&mut self, now: f64) {
        let Some(Change { worker, kind, .. }) = self.changes.pop() else {
            return;
        };
        match (kind, self.gateways.has(worker)) {
            (ChangeKind::Leave, true) => self.leave(worker, now),
            (ChangeKind::Join, false) => self.gateways.join(worker),
            (ChangeKind::Flush, true) => {
                self.workers[worker].flush();
                self.gateways.flush(worker);
            }
            _ => {}
        }
    }

    fn leave(&mut self, worker: usize, now: f64) {
        self.gateways.leave(worker);
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

    /// Sends a request to one worker after the other, as far as the rules go.
    fn route_among_faults(&mut self, request: usize, now: f64, mut tried: Vec<usize>) {
        let knowledge = self.options.knowledge;
        let mut server_errors = Vec::new();
        loop {
            let slots = match knowledge {
                Knowledge::Rules => self.guards.selectable(&tried, now),
                Knowledge::Oracle => self.well(&tried),
                Knowledge::None => (0..self.workers.len()).collect(),
            };
            let Some(chosen) = self.choose(request, now, Some(&slots)) else {
                self.totals.failed += 1;
                break;
            };
            let slot = chosen.slot;
            let rules = knowledge == Knowledge::Rules;
            let trial = rules.then(|| self.guards.begin_attempt(slot)).flatten();
            let Some(outcome) = self.fault(slot) else {
                let (worker, uncached) = (slot, chosen.uncached);
                if self.submit(request, now, chosen) {
                    self.attempts[request] = Some(Attempt {
                        worker,
                        begun: now,
                        uncached,
                        trial,
                    });
                }
                break;
            };
            tried.push(slot);
            let alive = self.conditions[slot] != Condition::Dead;
            let open = outcome == Outcome::Answered(500) && trial.is_none();
            if open {
                server_errors.push(slot);
            } else if rules {
                let end = End { trial, now, alive };
                self.guards.end_attempt(slot, outcome, end);
            }
            let again = match knowledge {
                Knowledge::Rules => self.guards.grants_retry(outcome, now),
                Knowledge::Oracle => true,
                Knowledge::None => false,
            };
            if tried.len() >= ATTEMPTS || !again {
                self.totals.failed += 1;
                break;
            }
        }
        // An error that a second worker repeats is the request's.
        if let ([slot], Knowledge::Rules) = (&*server_errors, knowledge) {
            let end = End {
                trial: None,
                now,
                alive: true,
            };
            self.guards.end_attempt(*slot, Outcome::Answered(500), end);
        }
    }

    /// How an attempt at a worker fails at once, if it does.
    fn fault(&self, slot: usize) -> Option<Outcome> {
        match self.conditions[slot] {
            Condition::Dead => Some(Outcome::NotConnected),
            Condition::Failing(share) => {
                let drawn = mix(self.options.seed ^ u64::MAX, self.decisions) >> 11;
                let fails = (drawn as f64) < share * (1_u64 << 53) as f64;
                fails.then_some(Outcome::Answered(500))
            }
            Condition::Well | Condition::Slow(_) => None,
        }
    }

    /// Slots of the workers that are well, but for those tried; of all if none is.
    fn well(&self, tried: &[usize]) -> Vec<usize> {
        let slots = 0..self.workers.len();
        let well = slots.filter(|slot| self.conditions[*slot] == Condition::Well);
        let well: Vec<usize> = well.filter(|slot| !tried.contains(slot)).collect();
        if well.is_empty() {
            return (0..self.workers.len()).collect();
        }
        well
    }

    /// Time of the next probe or comparison, where any matters.
    fn next_check(&self) -> f64 {
        let matters = !self.options.faults.is_empty();
        if matters {
            self.guards.next()
        } else {
            f64::INFINITY
        }
    }

    /// What is due: gateways exchange messages, workers change, or the gateway looks at them.
    fn check(&mut self, now: f64) {
        self.gateways.exchange(now);
        if self.next_condition <= now {
            self.change_conditions(now);
        }
        if self.options.faults.is_empty() {
            return;
        }
        let conditions = &self.conditions;
        let alive = |slot: usize| conditions[slot] != Condition::Dead;
        let ejected = self.guards.run(now, alive);
        let faulty = |slot: usize| self.options.faults.iter().any(|fault| fault.worker == slot);
        let well = ejected.iter().filter(|slot| !faulty(**slot));
        self.totals.ejected_well += well.count();
        self.totals.ejected += ejected.len();
    }

    fn change_conditions(&mut self, now: f64) {
        let (faults, scale) = (&self.options.faults, 1000.0 * self.options.speed);
        // Rounding must not lead back to the change that is due now.
        let at_ms = now * scale * (1.0 + f64::EPSILON) + 1e-6;
        self.next_condition = next_change(faults, at_ms) / scale;
        for slot in 0..self.workers.len() {
            let next = condition(faults, slot, at_ms);
            if std::mem::replace(&mut self.conditions[slot], next) == next {
                continue;
            }
            let slowness = if let Condition::Slow(factor) = next {
                factor
            } else {
                1.0
            };
            self.workers[slot].slow_down(now, slowness);
            if next == Condition::Dead {
                self.die(slot, now);
            }
            self.next[slot] = self.workers[slot].next();
        }
    }

    fn die(&mut self, slot: usize, now: f64) {
        let lost = self.workers[slot].kill(now);
        self.totals.cut += lost.cut.len();
        self.totals.rerouted += lost.waiting.len();
        for request in lost.cut {
            self.leases[request] = None;
            self.end_attempt(request, Outcome::Truncated, now);
        }
        for request in lost.waiting {
            self.leases[request] = None;
            self.end_attempt(request, Outcome::NoResponse, now);
            if self.options.knowledge == Knowledge::None {
                self.totals.failed += 1;
            } else {
                self.route_among_faults(request, now, vec![slot]);
            }
        }
    }

    fn end_attempt(&mut self, request: usize, outcome: Outcome, now: f64) {
        let Some(attempt) = self.attempts.get_mut(request).and_then(Option::take) else {
            return;
        };
        let alive = self.conditions[attempt.worker] != Condition::Dead;
        let trial = attempt.trial;
        let end = End { trial, now, alive };
        self.guards.end_attempt(attempt.worker, outcome, end);
    }

    /// Requests in flight and queued tokens of all workers together.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> (usize, u64) {
        self.gateways.in_flight()
    }

    /// Prompt tokens found in caches so far.
    #[cfg(test)]
    pub(super) fn cached_tokens(&self) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.work().cached_tokens)
            .sum()
    }

    pub(super) fn report(mut self, policy: &str) -> Report {
        self.totals.shared_bytes = self.gateways.shared_bytes();
        let work: Vec<_> = self.workers.iter().map(Worker::work).collect();
        self.totals.report(policy, &work)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures this machine, affects no result but the timing"
)]
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let done = work();
    (done, started.elapsed())
}
