//! Faults of workers during a run, and how a worker is at a moment.

use serde::{Deserialize, Serialize};

use crate::error::SimError;

/// A fault of a worker, on the trace's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerFault {
    /// Its begin: milliseconds since the trace's first request, before `speed`.
    pub from_ms: f64,
    /// Its end.
    pub to_ms: f64,
    /// Index of the worker, counted from 0.
    pub worker: usize,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What is wrong with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Connections are refused; what it had is lost.
    Dead,
    /// Dead for half of every period of so many milliseconds.
    Flapping(f64),
    /// Everything takes so many times longer. Probes pass.
    Slow(f64),
    /// This share of requests (0 to 1) is answered with 500 at once. Probes pass.
    Gray(f64),
    /// Every request is answered with 500 at once, so that it looks idle. Probes pass.
    FastFailing,
}

/// Which knowledge requests are routed with where workers have faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knowledge {
    /// The gateway's rules: breakers, suspects, probes, outliers, retries.
    #[default]
    Rules,
    /// An oracle knows which workers are well.
    Oracle,
    /// None: a request goes where the policy sends it, once.
    None,
}

/// How a worker is at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Condition {
    Well,
    Dead,
    /// So many times slower.
    Slow(f64),
    /// This share of requests fails.
    Failing(f64),
}

impl WorkerFault {
    /// Checks every rule in a fleet of so many workers; the first broken one is the error.
    pub(super) fn check(&self, workers: usize) -> Result<(), SimError> {
        let refuse = |field, value, why| Err(SimError::option(field, value, why));
        if self.worker >= workers {
            let why = "must be below the number of workers";
            return Err(SimError::option("faults.worker", self.worker, why));
        }
        if !(0.0..=1e15).contains(&self.from_ms) {
            return refuse(
                "faults.from_ms",
                self.from_ms,
                "must be 0 or more and of sane size",
            );
        }
        if !(self.from_ms..=1e15).contains(&self.to_ms) {
            return refuse("faults.to_ms", self.to_ms, "must not be before from_ms");
        }
        match self.kind {
            FaultKind::Flapping(period) if !(1.0..=1e12).contains(&period) => {
                refuse("faults.kind.flapping", period, "must be at least 1 ms")
            }
            FaultKind::Slow(factor) if !(1.0..=1e6).contains(&factor) => {
                refuse("faults.kind.slow", factor, "must be at least 1")
            }
            FaultKind::Gray(share) if !(0.0..=1.0).contains(&share) => {
                refuse("faults.kind.gray", share, "must be from 0 to 1")
            }
            _ => Ok(()),
        }
    }

    /// How the worker is at `at_ms`, as far as this fault goes.
    fn condition(&self, at_ms: f64) -> Condition {
        if !(self.from_ms..self.to_ms).contains(&at_ms) {
            return Condition::Well;
        }
        match self.kind {
            FaultKind::Dead => Condition::Dead,
            FaultKind::Flapping(period) if (at_ms - self.from_ms) % period < period / 2.0 => {
                Condition::Dead
            }
            FaultKind::Flapping(_) => Condition::Well,
            FaultKind::Slow(factor) => Condition::Slow(factor),
            FaultKind::Gray(share) => Condition::Failing(share),
            FaultKind::FastFailing => Condition::Failing(1.0),
        }
    }

    /// The next moment after `after_ms` at which the condition may change.
    fn next_change(&self, after_ms: f64) -> f64 {
        if after_ms < self.from_ms {
            return self.from_ms;
        }
        if after_ms >= self.to_ms {
            return f64::INFINITY;
        }
        match self.kind {
            FaultKind::Flapping(period) => {
                let half = period / 2.0;
                let next = self.from_ms + (((after_ms - self.from_ms) / half).floor() + 1.0) * half;
                next.min(self.to_ms)
            }
            _ => self.to_ms,
        }
    }
}

/// How a worker is at `at_ms`; of several faults the first counts.
pub(super) fn condition(faults: &[WorkerFault], worker: usize, at_ms: f64) -> Condition {
    let own = faults.iter().filter(|fault| fault.worker == worker);
    own.map(|fault| fault.condition(at_ms))
        .find(|condition| *condition != Condition::Well)
        .unwrap_or(Condition::Well)
}

/// The next moment after `after_ms` at which any worker's condition may change.
pub(super) fn next_change(faults: &[WorkerFault], after_ms: f64) -> f64 {
    let changes = faults.iter().map(|fault| fault.next_change(after_ms));
    changes.fold(f64::INFINITY, f64::min)
}
