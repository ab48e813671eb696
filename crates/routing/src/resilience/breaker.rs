//! A worker's circuit breaker: consecutive failures open it, successful trials close it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::BreakerSignal;

/// Failures remembered at most; a threshold above this is never reached.
const MOST_FAILURES: usize = 1 << 16;

/// The conditions under which a breaker opens and closes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerRules {
    /// Failures in a row, none older than `window`, that open the breaker.
    pub failures: u32,
    /// Successful trials in a row that close it again.
    pub successes: u32,
    /// The time it stays open.
    pub open_for: Duration,
    /// The age beyond which a failure no longer counts.
    pub window: Duration,
}

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Requests pass.
    Closed,
    /// No requests pass.
    Open,
    /// Requests pass as trials: the next one when the last has its first byte.
    HalfOpen,
}

impl Circuit {
    /// The name in metrics.
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
    /// The times of the failures in the present run.
    failures: VecDeque<Duration>,
    /// Every failure of the present run was one of the connection.
    only_connections: bool,
    /// Successful trials since it half-opened.
    successes: u32,
    opened_at: Duration,
    /// Counts the times it half-opened. The result of a trial of an earlier round is void.
    round: u32,
    /// A trial waits for its first byte.
    awaiting_first_byte: bool,
    /// Trials that have not ended.
    trials: u32,
}

/// A request that passes a half-open breaker.
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
            only_connections: true,
            successes: 0,
            opened_at: Duration::ZERO,
            round: 0,
            awaiting_first_byte: false,
            trials: 0,
        }
    }

    /// Sets other rules. What has been counted stays, and is judged by them from now on.
    pub fn set_rules(&mut self, rules: BreakerRules) {
        self.rules = rules;
        if self.circuit == Circuit::HalfOpen && self.successes >= rules.successes {
            self.close();
        }
    }

    /// The present state.
    pub fn circuit(&self) -> Circuit {
        self.circuit
    }

    /// Failures in the present run.
    pub fn failures(&self) -> usize {
        self.failures.len()
    }

    /// Successful trials in a row.
    pub fn successes(&self) -> u32 {
        self.successes
    }

    /// Whether the breaker is closed and without failures.
    pub fn is_clean(&self) -> bool {
        self.circuit == Circuit::Closed && self.failures.is_empty()
    }

    /// Whether a request may go to the worker.
    pub fn allows(&self) -> bool {
        match self.circuit {
            Circuit::Closed => true,
            Circuit::Open => false,
            Circuit::HalfOpen => {
                // No more trials than are needed to close the breaker.
                !self.awaiting_first_byte && self.trials + self.successes < self.rules.successes
            }
        }
    }

    /// The time at which it half-opens; `None` unless it is open.
    pub fn half_opens_at(&self) -> Option<Duration> {
        (self.circuit == Circuit::Open).then(|| self.opened_at.saturating_add(self.rules.open_for))
    }

    /// Half-opens the breaker if it has been open long enough.
    pub fn advance(&mut self, now: Duration) {
        if self.half_opens_at().is_some_and(|at| now >= at) {
            self.circuit = Circuit::HalfOpen;
            self.successes = 0;
            self.round = self.round.wrapping_add(1);
            self.awaiting_first_byte = false;
            self.trials = 0;
        }
    }

    /// Begins a trial; `None` unless the breaker is half-open and allows one.
    pub fn begin_trial(&mut self) -> Option<Trial> {
        if self.circuit != Circuit::HalfOpen || !self.allows() {
            return None;
        }
        self.awaiting_first_byte = true;
        self.trials += 1;
        Some(Trial {
            round: self.round,
            answered: false,
        })
    }

    /// Records the first byte of a trial's response. The next trial may begin, so that a long
    /// response does not hold up other requests until it ends.
    pub fn trial_answered(&mut self, trial: &mut Trial) {
        if !trial.answered && self.is_current(*trial) {
            self.awaiting_first_byte = false;
        }
        trial.answered = true;
    }

    /// Records the end of a trial.
    pub fn end_trial(&mut self, trial: Trial, signal: BreakerSignal, now: Duration) {
        if !self.is_current(trial) {
            return;
        }
        self.trials = self.trials.saturating_sub(1);
        self.awaiting_first_byte &= trial.answered;
        match signal {
            BreakerSignal::Neutral => {}
            BreakerSignal::Failure => {
                self.only_connections = false;
                self.open(now);
            }
            BreakerSignal::ConnectionFailure => self.open(now),
            BreakerSignal::Success => {
                self.successes = self.successes.saturating_add(1);
                if self.successes >= self.rules.successes {
                    self.close();
                }
            }
        }
    }

    /// Closes the breaker and drops all failures, because the worker has restarted.
    pub fn close(&mut self) {
        self.circuit = Circuit::Closed;
        self.forget_failures();
    }

    /// A probe has passed: a breaker that only failures of connections opened is closed again,
    /// because the worker can be connected to.
    pub fn probe_passed(&mut self) {
        if self.circuit != Circuit::Closed && self.only_connections {
            self.close();
        }
    }

    fn forget_failures(&mut self) {
        self.failures.clear();
        self.only_connections = true;
    }

    fn is_current(&self, trial: Trial) -> bool {
        self.circuit == Circuit::HalfOpen && self.round == trial.round
    }

    /// Records the end of a request that was no trial. Only a closed breaker counts it, because
    /// requests sent before the breaker opened are no new evidence.
    pub fn record(&mut self, signal: BreakerSignal, now: Duration) {
        if self.circuit != Circuit::Closed {
            return;
        }
        match signal {
            BreakerSignal::Neutral => {}
            BreakerSignal::Success => self.forget_failures(),
            BreakerSignal::Failure | BreakerSignal::ConnectionFailure => {
                let is_old = |at: &Duration| now.saturating_sub(*at) > self.rules.window;
                while self.failures.front().is_some_and(is_old)
                    || self.failures.len() >= MOST_FAILURES
                {
                    self.failures.pop_front();
                }
                self.only_connections &= signal == BreakerSignal::ConnectionFailure;
                self.failures.push_back(now);
                if self.failures.len() >= self.rules.failures as usize {
                    self.open(now);
                }
            }
        }
    }

    fn open(&mut self, now: Duration) {
        self.circuit = Circuit::Open;
        self.opened_at = now;
        self.successes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::BreakerSignal::{ConnectionFailure, Failure, Neutral, Success};
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
    fn passed_probe_closes_a_breaker_that_only_connection_failures_opened() {
        for (failures, closed) in [
            (
                [ConnectionFailure, ConnectionFailure, ConnectionFailure],
                true,
            ),
            ([ConnectionFailure, Failure, ConnectionFailure], false),
            ([Failure, Failure, Failure], false),
        ] {
            let mut breaker = breaker();
            for signal in failures {
                breaker.record(signal, secs(0));
            }
            assert_eq!(breaker.circuit(), Circuit::Open);
            breaker.probe_passed();
            assert_eq!(breaker.circuit() == Circuit::Closed, closed, "{failures:?}");
            assert_eq!(breaker.is_clean(), closed);
        }
    }

    #[test]
    fn failed_trial_keeps_the_breaker_open_after_a_passed_probe() {
        let mut breaker = breaker();
        for _ in 0..3 {
            breaker.record(ConnectionFailure, secs(0));
        }
        breaker.advance(secs(60));
        let trial = breaker.begin_trial().unwrap();
        breaker.end_trial(trial, Failure, secs(61));
        breaker.probe_passed();
        assert_eq!(breaker.circuit(), Circuit::Open);
    }

    #[test]
    fn other_rules_judge_what_has_been_counted() {
        let rules = |failures, successes, open_for| BreakerRules {
            failures,
            successes,
            open_for: secs(open_for),
            window: secs(120),
        };
        let mut breaker = breaker();
        breaker.record(Failure, secs(0));
        breaker.set_rules(rules(2, 2, 60));
        breaker.record(Failure, secs(1));
        assert_eq!(breaker.circuit(), Circuit::Open);
        breaker.set_rules(rules(2, 2, 5));
        assert_eq!(breaker.half_opens_at(), Some(secs(6)));
        breaker.advance(secs(6));
        let trial = breaker.begin_trial().unwrap();
        breaker.end_trial(trial, Success, secs(6));
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
        // As many successes as are wanted now: no further trial would be let through.
        breaker.set_rules(rules(2, 1, 5));
        assert!(breaker.is_clean());
    }

    #[test]
    fn interrupted_failures_do_not_open_it() {
        let mut breaker = breaker();
        for _ in 0..100 {
            breaker.record(Failure, secs(1));
            breaker.record(Failure, secs(1));
            breaker.record(Success, secs(1));
        }
        assert!(breaker.is_clean());
    }

    #[test]
    fn neutral_outcomes_neither_open_it_nor_interrupt_failures() {
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
    fn half_open_breaker_takes_one_trial_at_a_time_and_closes_on_success() {
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
    fn first_byte_admits_next_trial_up_to_the_number_needed() {
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
    fn failed_trial_opens_it_for_a_full_period() {
        let mut breaker = half_open();
        let first = breaker.begin_trial().unwrap();
        breaker.end_trial(first, Success, secs(61));
        let mut late = breaker.begin_trial().unwrap();
        breaker.trial_answered(&mut late);
        breaker.end_trial(late, Failure, secs(70));
        assert_eq!(breaker.half_opens_at(), Some(secs(130)));
    }

    #[test]
    fn result_of_trial_of_earlier_round_is_void() {
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
    fn neutral_trial_admits_another() {
        let mut breaker = half_open();
        let trial = breaker.begin_trial().unwrap();
        breaker.end_trial(trial, Neutral, secs(61));
        assert_eq!(breaker.successes(), 0);
        assert!(breaker.begin_trial().is_some());
    }

    #[test]
    fn result_of_request_sent_before_opening_is_ignored() {
        let mut breaker = opened();
        breaker.record(Success, secs(1));
        assert_eq!(breaker.circuit(), Circuit::Open);
        breaker.advance(secs(60));
        breaker.record(Failure, secs(61));
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
    }

    proptest! {
        #[test]
        fn trials_stay_bounded_and_breaker_allows_requests_in_the_end(
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
