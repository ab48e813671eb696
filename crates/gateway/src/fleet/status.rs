//! Whether a worker is given requests, and why not.

use std::time::Duration;

use routing::{Breaker, BreakerRules, Circuit, Standing, Tier, Verdict};

/// How long other workers are preferred to one that refused a request; doubles with each
/// refusal in a row.
const INITIAL_BUSY: Duration = Duration::from_millis(50);
/// How long a failed start is shown as the status of the registration.
const FAILURE_SHOWN_FOR: Duration = Duration::from_mins(5);
/// Up to 1.6 s.
const MAX_DOUBLINGS: u32 = 5;

/// The verdict of its probes, its breaker, and what was decided about a worker.
#[derive(Debug)]
pub(crate) struct WorkerState {
    pub(super) verdict: Verdict,
    /// Requests that it has are lost.
    pub(super) lost: bool,
    /// `None` when breakers are off.
    pub(super) breaker: Option<Breaker>,
    /// It finishes what it has and gets nothing new.
    pub(super) draining: bool,
    /// How many want it to get nothing new for a while; it stays in the fleet.
    pub(super) withheld: usize,
    /// An operator wants it to get nothing new until further notice; it stays in the fleet.
    pub(super) drained: bool,
    /// The source that lists it says that it is not ready.
    pub(super) unready: bool,
    /// An outlier among its peers is ejected until then.
    pub(super) ejected_until: Option<Duration>,
    /// It refused a request for lack of capacity: until then other workers are preferred.
    pub(super) busy_until: Option<Duration>,
    /// Such refusals in a row.
    pub(super) refusals: u32,
    /// Its engine is paused: a request waits there until it continues.
    pub(super) paused: bool,
    /// When it came back from being not ready, while slow start lasts.
    pub(super) recovered_at: Option<Duration>,
    /// When it joined, if the gateway was running by then.
    pub(super) joined_at: Option<Duration>,
    /// When its start-up time ran out.
    pub(super) failed_at: Option<Duration>,
}

/// The registration of a worker that has not been ready yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegistrationStatus {
    /// It did not become ready in time.
    pub(crate) failed: bool,
    /// How long it has been so.
    pub(crate) age: Duration,
}

/// What follows from a [`WorkerState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Availability {
    pub(crate) verdict: Verdict,
    pub(crate) circuit: Circuit,
    pub(crate) draining: bool,
    /// It gets nothing new for a while.
    pub(crate) withheld: bool,
    /// An operator has drained it.
    pub(crate) drained: bool,
    /// The source that lists it says that it is not ready.
    pub(crate) unready: bool,
    /// It is not draining or drained, its source does not hold it back, and its verdict is ready or
    /// suspect.
    pub(crate) ready: bool,
    /// It gets requests.
    pub(crate) selectable: bool,
    /// It gets requests when no other worker may: it is ejected, busy, paused, or suspect.
    pub(crate) fallback: bool,
    /// It is ready, but its breaker lets no request through.
    pub(crate) rejected: bool,
    /// Requests that it has are lost.
    pub(crate) lost: bool,
    /// It counts among the workers of its model: it has been ready once, and is not draining.
    pub(crate) member: bool,
    /// Its engine is paused.
    pub(crate) paused: bool,
    /// When it came back from being not ready, while slow start lasts.
    pub(crate) recovered_at: Option<Duration>,
    /// Its breaker holds no failure.
    pub(super) clean: bool,
}

impl WorkerState {
    pub(crate) fn new(
        verdict: Verdict,
        breaker: Option<Breaker>,
        joined_at: Option<Duration>,
    ) -> Self {
        Self {
            verdict,
            lost: false,
            breaker,
            draining: false,
            withheld: 0,
            drained: false,
            unready: false,
            ejected_until: None,
            busy_until: None,
            refusals: 0,
            paused: false,
            recovered_at: None,
            joined_at,
            failed_at: None,
        }
    }

    pub(super) fn availability(&self) -> Availability {
        let verdict = self.verdict;
        let breaker = self.breaker.as_ref();
        // A suspect counts as ready until a probe says otherwise.
        let eligible = !self.draining && !self.drained && !self.unready;
        let ready = matches!(verdict, Verdict::Ready | Verdict::Suspect) && eligible;
        let was_ready = !matches!(verdict, Verdict::Pending | Verdict::Failed);
        let standing = Standing {
            verdict,
            allowed: breaker.is_none_or(Breaker::allows),
            spared: self.paused || self.ejected_until.is_some() || self.busy_until.is_some(),
        };
        let is = |tier| eligible && self.withheld == 0 && standing.tier() == tier;
        Availability {
            verdict,
            circuit: breaker.map_or(Circuit::Closed, Breaker::circuit),
            draining: self.draining,
            withheld: self.withheld > 0,
            drained: self.drained,
            unready: self.unready,
            ready,
            selectable: is(Tier::Selectable),
            fallback: is(Tier::Fallback),
            rejected: is(Tier::Rejected),
            lost: self.lost,
            member: was_ready && !self.draining,
            paused: self.paused,
            recovered_at: self.recovered_at,
            clean: breaker.is_none_or(Breaker::is_clean) && self.refusals == 0,
        }
    }

    /// Sets the rules of its breaker; `None` turns breakers off.
    pub(super) fn set_breaker_rules(&mut self, rules: Option<BreakerRules>) {
        match (&mut self.breaker, rules) {
            (Some(breaker), Some(rules)) => breaker.set_rules(rules),
            (breaker, rules) => *breaker = rules.map(Breaker::new),
        }
    }

    /// The status of a registration as long as the worker has never been ready.
    pub(super) fn registration_status(&self, now: Duration) -> Option<RegistrationStatus> {
        let joined = self.joined_at.unwrap_or_default();
        let (failed, since) = match self.verdict {
            _ if self.draining => return None,
            Verdict::Pending => (false, joined),
            Verdict::Failed => (true, self.failed_at.unwrap_or(joined)),
            _ => return None,
        };
        let age = now.saturating_sub(since);
        (!failed || age < FAILURE_SHOWN_FOR).then_some(RegistrationStatus { failed, age })
    }

    /// It refused a request for lack of capacity: for a moment other workers are preferred.
    /// Returns for how long, unless it was busy already.
    pub(super) fn record_refusal(&mut self, now: Duration) -> Option<Duration> {
        if self.busy_until.is_some() {
            return None;
        }
        let pause = INITIAL_BUSY * 2_u32.pow(self.refusals.min(MAX_DOUBLINGS));
        self.refusals += 1;
        self.busy_until = Some(now + pause);
        Some(pause)
    }

    /// Time passes: an open breaker half-opens, an ejection ends, slow start ends.
    pub(crate) fn advance(&mut self, now: Duration, slow_start: Duration) {
        if let Some(breaker) = &mut self.breaker {
            breaker.advance(now);
        }
        self.ejected_until = self.ejected_until.filter(|until| *until > now);
        self.busy_until = self.busy_until.filter(|until| *until > now);
        self.recovered_at = self
            .recovered_at
            .filter(|recovered| now.saturating_sub(*recovered) < slow_start);
    }
}

impl Availability {
    /// The word `GET /workers` uses.
    pub(crate) fn status(self) -> &'static str {
        if self.draining {
            "draining"
        } else if self.drained {
            "drained"
        } else if self.withheld {
            "withheld"
        } else if self.unready {
            Verdict::NotReady.as_str()
        } else {
            self.verdict.as_str()
        }
    }
}
