//! A worker's circuit breaker: failures in a row open it, trials one at a time close it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::BreakerSignal;

/// Failures remembered at most; a threshold above it is never reached.
const MOST_FAILURES: usize = 1 << 16;

/// When a breaker opens and closes.
#[derive(Clone, Copy, Debug)]
pub struct BreakerRules {
    /// Failures in a row, none older than `window`, that open it.
    pub failures: u32,
    /// Trials in a row that close it again.
    pub successes: u32,
    /// How long it stays open.
    pub open_for: Duration,
    /// Age at which a failure no longer counts.
    pub window: Duration,
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Requests flow.
    Closed,
    /// No requests.
    Open,
    /// One request at a time, as a trial.
    HalfOpen,
}

impl Circuit {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }

    /// The number in metrics.
    pub fn as_number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::Open => 1,
            Self::HalfOpen => 2,
        }
    }
}

/// A circuit breaker. Time is a parameter: a duration since some fixed moment.
#[derive(Clone, Debug)]
pub struct Breaker {
    rules: BreakerRules,
    circuit: Circuit,
    /// When the failures of the present run happened.
    failures: VecDeque<Duration>,
    /// Successes in a row since it half-opened.
    successes: u32,
    opened: Duration,
    /// Counts the times it half-opened: the verdict on a trial of an earlier time is void.
    round: u32,
    /// A trial waits for its first byte.
    awaited: bool,
    /// Trials without a verdict.
    trials: u32,
}

/// A place on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    round: u32,
    answered: bool,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(rules: BreakerRules) -> Self {
        Self {
            rules,
            circuit: Circuit::Closed,
            failures: VecDeque::new(),
            successes: 0,
            opened: Duration::ZERO,
            round: 0,
            awaited: false,
            trials: 0,
        }
    }

    /// Where it stands.
    pub fn circuit(&self) -> Circuit {
        self.circuit
    }

    /// Failures of the present run.
    pub fn failures(&self) -> usize {
        self.failures.len()
    }

    /// Trials in a row that succeeded.
    pub fn successes(&self) -> u32 {
        self.successes
    }

    /// Whether nothing is held against the worker.
    pub fn is_clean(&self) -> bool {
        self.circuit == Circuit::Closed && self.failures.is_empty()
    }

    /// Whether a request may go to the worker.
    pub fn allows(&self) -> bool {
        match self.circuit {
            Circuit::Closed => true,
            Circuit::Open => false,
            Circuit::HalfOpen => {
                // No more at stake than it takes to close it.
                !self.awaited && self.trials + self.successes < self.rules.successes
            }
        }
    }

    /// When it will half-open; `None` unless it is open.
    pub fn half_opens_at(&self) -> Option<Duration> {
        (self.circuit == Circuit::Open).then(|| self.opened.saturating_add(self.rules.open_for))
    }

    /// Half-opens when its time has come.
    pub fn advance(&mut self, now: Duration) {
        if self.half_opens_at().is_some_and(|at| now >= at) {
            self.circuit = Circuit::HalfOpen;
            self.successes = 0;
            self.round = self.round.wrapping_add(1);
            self.awaited = false;
            self.trials = 0;
        }
    }

    /// Takes the one place a half-open breaker has; `None` when somebody else has it.
    pub fn begin_trial(&mut self) -> Option<Trial> {
        if self.circuit != Circuit::HalfOpen || !self.allows() {
            return None;
        }
        self.awaited = true;
        self.trials += 1;
        Some(Trial {
            round: self.round,
            answered: false,
        })
    }

    /// The first byte of a trial's answer has come: the next one may begin, so that a long
    /// answer does not keep everybody else out until its verdict.
    pub fn trial_answered(&mut self, trial: &mut Trial) {
        if !trial.answered && self.is_on(*trial) {
            self.awaited = false;
        }
        trial.answered = true;
    }

    /// A trial has ended.
    pub fn end_trial(&mut self, trial: Trial, signal: BreakerSignal, now: Duration) {
        if !self.is_on(trial) {
            return;
        }
        self.trials = self.trials.saturating_sub(1);
        self.awaited &= trial.answered;
        match signal {
            BreakerSignal::Neutral => {}
            BreakerSignal::Failure => self.open(now),
            BreakerSignal::Success => {
                self.successes = self.successes.saturating_add(1);
                if self.successes >= self.rules.successes {
                    self.close();
                }
            }
        }
    }

    /// The worker has come back as a new one: nothing is held against it.
    pub fn close(&mut self) {
        self.circuit = Circuit::Closed;
        self.failures.clear();
    }

    fn is_on(&self, trial: Trial) -> bool {
        self.circuit == Circuit::HalfOpen && self.round == trial.round
    }

    /// A request that was no trial has ended. Only a closed breaker cares: what was sent before
    /// it opened says nothing new.
    pub fn record(&mut self, signal: BreakerSignal, now: Duration) {
        if self.circuit != Circuit::Closed {
            return;
        }
        match signal {
            BreakerSignal::Neutral => {}
            BreakerSignal::Success => self.failures.clear(),
            BreakerSignal::Failure => {
                let old = |at: &Duration| now.saturating_sub(*at) > self.rules.window;
                while self.failures.front().is_some_and(old) || self.failures.len() >= MOST_FAILURES
                {
                    self.failures.pop_front();
                }
                self.failures.push_back(now);
                if self.failures.len() >= self.rules.failures as usize {
                    self.open(now);
                }
            }
        }
    }

    fn open(&mut self, now: Duration) {
        self.circuit = Circuit::Open;
        self.opened = now;
        self.successes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::BreakerSignal::{Failure, Neutral, Success};
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn breaker() -> Breaker {
        Breaker::new(BreakerRules {
            failures: 3,
            successes: 2,
            open_for: secs(60),
            window: secs(120),
        })
    }

    /// A breaker that opened at second 0.
    fn opened() -> Breaker {
        let mut breaker = breaker();
        for _ in 0..3 {
            breaker.record(Failure, secs(0));
        }
        assert_eq!(breaker.circuit(), Circuit::Open);
        breaker
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let mut breaker = breaker();
        for _ in 0..100 {
            breaker.record(Failure, secs(1));
            breaker.record(Failure, secs(1));
            breaker.record(Success, secs(1));
        }
        assert!(breaker.is_clean());
    }

    #[test]
    fn neutral_outcomes_neither_open_it_nor_end_a_run() {
        let mut breaker = breaker();
        for _ in 0..10_000 {
            breaker.record(Neutral, secs(1));
        }
        assert!(breaker.is_clean());
        for signal in [Failure, Neutral, Failure, Neutral, Failure] {
            breaker.record(signal, secs(1));
        }
        assert_eq!(breaker.circuit(), Circuit::Open);
    }

    #[test]
    fn failures_older_than_the_window_do_not_count() {
        let mut breaker = breaker();
        breaker.record(Failure, secs(0));
        breaker.record(Failure, secs(60));
        breaker.record(Failure, secs(121));
        assert_eq!(
            (breaker.circuit(), breaker.failures()),
            (Circuit::Closed, 2)
        );
        breaker.record(Failure, secs(122));
        assert_eq!(breaker.circuit(), Circuit::Open);
    }

    /// A breaker that half-opened at second 60.
    fn half_open() -> Breaker {
        let mut breaker = opened();
        breaker.advance(secs(60));
        breaker
    }

    #[test]
    fn it_half_opens_when_its_time_is_over_and_takes_one_trial_at_a_time() {
        let mut breaker = opened();
        breaker.advance(secs(59));
        assert!(!breaker.allows());
        breaker.advance(secs(60));
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
        let trial = breaker.begin_trial().unwrap();
        assert!(!breaker.allows() && breaker.begin_trial().is_none());
        breaker.end_trial(trial, Success, secs(61));
        let trial = breaker.begin_trial().unwrap();
        breaker.end_trial(trial, Success, secs(62));
        assert!(breaker.is_clean());
    }

    #[test]
    fn a_long_answer_lets_the_next_trial_begin_but_no_more_than_are_needed() {
        let mut breaker = half_open();
        let mut first = breaker.begin_trial().unwrap();
        breaker.trial_answered(&mut first);
        let mut second = breaker.begin_trial().unwrap();
        breaker.trial_answered(&mut second);
        assert!(breaker.begin_trial().is_none(), "two verdicts close it");
        breaker.end_trial(first, Success, secs(99));
        assert!(!breaker.is_clean());
        breaker.end_trial(second, Success, secs(99));
        assert!(breaker.is_clean());
    }

    #[test]
    fn a_failed_trial_opens_it_for_another_whole_time() {
        let mut breaker = half_open();
        let first = breaker.begin_trial().unwrap();
        breaker.end_trial(first, Success, secs(61));
        let mut late = breaker.begin_trial().unwrap();
        breaker.trial_answered(&mut late);
        breaker.end_trial(late, Failure, secs(70));
        assert_eq!(breaker.half_opens_at(), Some(secs(130)));
    }

    #[test]
    fn the_verdict_on_a_trial_of_an_earlier_round_is_void() {
        let mut breaker = half_open();
        let mut slow = breaker.begin_trial().unwrap();
        breaker.trial_answered(&mut slow);
        let failed = breaker.begin_trial().unwrap();
        breaker.end_trial(failed, Failure, secs(61));
        breaker.advance(secs(121));
        breaker.end_trial(slow, Failure, secs(122));
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
        assert!(breaker.allows());
    }

    #[test]
    fn a_trial_that_says_nothing_gives_its_place_back() {
        let mut breaker = half_open();
        let trial = breaker.begin_trial().unwrap();
        breaker.end_trial(trial, Neutral, secs(61));
        assert_eq!(breaker.successes(), 0);
        assert!(breaker.begin_trial().is_some());
    }

    #[test]
    fn what_was_sent_before_it_opened_changes_nothing() {
        let mut breaker = opened();
        breaker.record(Success, secs(1));
        assert_eq!(breaker.circuit(), Circuit::Open);
        breaker.advance(secs(60));
        breaker.record(Failure, secs(61));
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
    }

    proptest! {
        #[test]
        fn it_never_has_two_trials_and_never_stays_shut_for_ever(
            steps in prop::collection::vec((0..5_u8, 0..40_u64), 0..300),
        ) {
            let (mut breaker, mut now) = (breaker(), 0);
            let mut trials: Vec<Trial> = Vec::new();
            for (step, wait) in steps {
                now += wait;
                breaker.advance(secs(now));
                let signal = [Success, Failure, Neutral][usize::from(step % 3)];
                match (step, trials.pop()) {
                    (0..3, Some(trial)) => breaker.end_trial(trial, signal, secs(now)),
                    (0..3, None) => breaker.record(signal, secs(now)),
                    (3, Some(mut trial)) => {
                        breaker.trial_answered(&mut trial);
                        trials.push(trial);
                    }
                    (_, last) => {
                        trials.extend(last);
                        trials.extend(breaker.begin_trial());
                    }
                }
                prop_assert!(breaker.trials <= 2);
                prop_assert!(breaker.failures() <= 3);
            }
            for trial in trials {
                breaker.end_trial(trial, Neutral, secs(now));
            }
            breaker.advance(secs(now + 60));
            prop_assert!(breaker.allows());
        }
    }
}
