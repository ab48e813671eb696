//! The gateway's rules about failing workers, in virtual time: its breakers, health verdicts,
//! outlier detection and retry budget, with the default options and `--outlier-ejection`.

use std::collections::BTreeMap;
use std::time::Duration;

use routing::{
    Breaker, BreakerRules, BreakerSignal, Circuit, Health, Outcome, Outliers, Probe, Retry,
    RetryBudget, Standing, Thresholds, Tier, Trial, Window, is_panicking,
};

/// Attempts per request.
pub(super) const ATTEMPTS: usize = 5;
/// Pause between probes, between those of a worker that failed one, and between comparisons of
/// workers with their peers, seconds.
const PROBE_INTERVAL: f64 = 60.0;
const RECHECK_INTERVAL: f64 = 1.0;
const COMPARE_INTERVAL: f64 = 10.0;

/// What the gateway knows of every worker.
#[derive(Debug)]
pub(super) struct Guards {
    workers: Vec<Guard>,
    outliers: Outliers,
    budget: RetryBudget,
    requests: u64,
    next_comparison: f64,
}

/// The circumstances in which an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// It decides about a half-open breaker.
    pub(super) trial: Option<Trial>,
    /// Seconds.
    pub(super) now: f64,
    /// What a probe would find now.
    pub(super) alive: bool,
}

/// A first token.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstToken {
    /// Seconds since the worker got the request.
    pub(super) waited: f64,
    /// Prompt tokens that it had to compute.
    pub(super) tokens: u64,
}

#[derive(Debug)]
struct Guard {
    breaker: Breaker,
    health: Health,
    window: Window,
    ejected_until: Option<Duration>,
    next_probe: f64,
}

impl Guard {
    fn new() -> Self {
        let rules = BreakerRules {
            failures: 10,
            successes: 3,
            open_for: Duration::from_mins(1),
            window: Duration::from_mins(2),
        };
        let mut health = Health::new(Thresholds {
            failure: 3,
            success: 2,
        });
        health.record(Probe::Passed);
        Self {
            breaker: Breaker::new(rules),
            health,
            window: Window::default(),
            ejected_until: None,
            next_probe: PROBE_INTERVAL,
        }
    }

    fn tier(&self) -> Tier {
        let standing = Standing {
            verdict: self.health.verdict(),
            allowed: self.breaker.allows(),
            spared: self.ejected_until.is_some(),
        };
        standing.tier()
    }

    fn probe(&mut self, probe: Probe, now: f64) {
        self.health.record(probe);
        let passed = probe == Probe::Passed;
        if passed {
            self.breaker.probe_passed();
        }
        let pause = if passed {
            PROBE_INTERVAL
        } else {
            RECHECK_INTERVAL
        };
        self.next_probe = now + pause;
    }
}

impl Guards {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| Guard::new()).collect(),
            outliers: Outliers::new(0.2),
            budget: RetryBudget::new(0.1, 10),
            requests: 0,
            next_comparison: COMPARE_INTERVAL,
        }
    }

    /// The next moment at which something is due.
    pub(super) fn next(&self) -> f64 {
        let probes = self.workers.iter().map(|guard| guard.next_probe);
        probes.fold(self.next_comparison, f64::min)
    }

    /// Probes workers and compares them, where that is due; `alive` says whether one answers.
    /// Returns the slots of those ejected.
    pub(super) fn run(&mut self, now: f64, alive: impl Fn(usize) -> bool) -> Vec<usize> {
        for (slot, guard) in self.workers.iter_mut().enumerate() {
            if guard.next_probe <= now {
                let probe = if alive(slot) {
                    Probe::Passed
                } else {
                    Probe::Refused
                };
                guard.probe(probe, now);
            }
        }
        let mut ejected = Vec::new();
        if self.next_comparison <= now {
            self.next_comparison = now + COMPARE_INTERVAL;
            let windows: BTreeMap<usize, Window> = self
                .workers
                .iter_mut()
                .enumerate()
                .map(|(slot, guard)| (slot, std::mem::take(&mut guard.window)))
                .collect();
            let now = Duration::from_secs_f64(now);
            for ejection in self.outliers.detect(&windows, self.workers.len(), now) {
                self.workers[ejection.slot].ejected_until = Some(ejection.until);
                ejected.push(ejection.slot);
            }
        }
        ejected
    }

    /// Slots of the workers that a request may have now, but for those tried.
    pub(super) fn selectable(&mut self, tried: &[usize], now: f64) -> Vec<usize> {
        let now = Duration::from_secs_f64(now);
        for guard in &mut self.workers {
            guard.breaker.advance(now);
            guard.ejected_until = guard.ejected_until.filter(|until| *until > now);
        }
        let tiers: Vec<Tier> = self.workers.iter().map(Guard::tier).collect();
        let count = |tier| tiers.iter().filter(|it| **it == tier).count();
        let passing = count(Tier::Selectable) + count(Tier::Fallback);
        let panicking = is_panicking(count(Tier::Rejected), passing);
        let of = |wanted: &dyn Fn(Tier) -> bool| -> Vec<usize> {
            let slots = tiers.iter().enumerate().filter(|(_, tier)| wanted(**tier));
            let slots = slots.map(|(slot, _)| slot);
            slots.filter(|slot| !tried.contains(slot)).collect()
        };
        let preferred = of(&|tier| tier == Tier::Selectable);
        if !preferred.is_empty() {
            return preferred;
        }
        of(&|tier| tier == Tier::Fallback || (panicking && tier == Tier::Rejected))
    }

    /// A request begins.
    pub(super) fn begin_request(&mut self) {
        self.requests += 1;
    }

    /// An attempt begins; it may be one that decides about a half-open breaker.
    pub(super) fn begin_attempt(&mut self, slot: usize) -> Option<Trial> {
        let breaker = &mut self.workers[slot].breaker;
        let half_open = breaker.circuit() == Circuit::HalfOpen;
        half_open.then(|| breaker.begin_trial()).flatten()
    }

    /// The first token of a request has come.
    pub(super) fn first_token(
        &mut self,
        slot: usize,
        first: FirstToken,
        trial: Option<&mut Trial>,
    ) {
        let FirstToken { waited, tokens } = first;
        let guard = &mut self.workers[slot];
        guard.window.waited += Duration::from_secs_f64(waited);
        guard.window.tokens += tokens;
        if let Some(trial) = trial {
            guard.breaker.trial_answered(trial);
        }
    }

    /// An attempt has ended.
    pub(super) fn end_attempt(&mut self, slot: usize, outcome: Outcome, end: End) {
        let End { trial, now, alive } = end;
        let consequence = outcome.consequence();
        let guard = &mut self.workers[slot];
        let failed = !matches!(
            consequence.signal,
            BreakerSignal::Success | BreakerSignal::Neutral
        );
        guard.window.requests += u64::from(outcome != Outcome::Abandoned);
        guard.window.failures += u64::from(failed);
        let at = Duration::from_secs_f64(now);
        match trial {
            Some(trial) => guard.breaker.end_trial(trial, consequence.signal, at),
            None => guard.breaker.record(consequence.signal, at),
        }
        if consequence.suspect {
            guard.health.suspect();
            // A probe is sent at once.
            guard.probe(if alive { Probe::Passed } else { Probe::Refused }, now);
        }
    }

    /// Whether the next attempt is granted after this outcome.
    pub(super) fn grants_retry(&mut self, outcome: Outcome, now: f64) -> bool {
        let now = Duration::from_secs_f64(now);
        match outcome.consequence().retry {
            Retry::No => false,
            Retry::Once | Retry::Free => true,
            Retry::Budgeted => self.budget.take(self.requests, now),
        }
    }
}
