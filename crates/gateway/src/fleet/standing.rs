//! What speaks for and against giving a worker requests.

use std::time::Duration;

use routing::{Breaker, Circuit, Health, Verdict};

/// A worker's standing: its probes, its breaker, and what was decided about it.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(super) health: Health,
    /// `None` when breakers are off.
    pub(super) breaker: Option<Breaker>,
    /// It is leaving: what it has may finish, nothing new comes.
    pub(super) draining: bool,
    /// An outlier among its peers rests until then.
    pub(super) rests_until: Option<Duration>,
    /// When it came back from being away.
    pub(super) returned: Option<Duration>,
}

/// A standing at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Glance {
    pub(crate) verdict: Verdict,
    pub(crate) circuit: Circuit,
    pub(crate) draining: bool,
    /// Its probes pass and it is not leaving.
    pub(crate) ready: bool,
    /// It gets requests.
    pub(crate) open: bool,
    /// It gets requests when nobody better is there: only a probe under way speaks against it.
    pub(crate) last_resort: bool,
    /// Nothing is held against it.
    pub(super) clean: bool,
}

impl Standing {
    pub(crate) fn new(health: Health, breaker: Option<Breaker>) -> Self {
        Self {
            health,
            breaker,
            draining: false,
            rests_until: None,
            returned: None,
        }
    }

    pub(super) fn glance(&self) -> Glance {
        let verdict = self.health.verdict();
        let breaker = self.breaker.as_ref();
        let allowed = breaker.is_none_or(Breaker::allows) && self.rests_until.is_none();
        Glance {
            verdict,
            circuit: breaker.map_or(Circuit::Closed, Breaker::circuit),
            draining: self.draining,
            ready: verdict == Verdict::Ready && !self.draining,
            open: verdict == Verdict::Ready && !self.draining && allowed,
            last_resort: verdict == Verdict::Suspect && !self.draining && allowed,
            clean: breaker.is_none_or(Breaker::is_clean),
        }
    }

    /// Time goes by: an open breaker half-opens, a rest ends, a return is long ago.
    pub(super) fn pass_time(&mut self, now: Duration, slow_start: Duration) {
        if let Some(breaker) = &mut self.breaker {
            breaker.pass_time(now);
        }
        self.rests_until = self.rests_until.filter(|until| *until > now);
        self.returned = self
            .returned
            .filter(|returned| now.saturating_sub(*returned) < slow_start);
    }
}

impl Glance {
    /// The word `GET /workers` uses.
    pub(crate) fn status(self) -> &'static str {
        if self.draining {
            "draining"
        } else {
            self.verdict.as_str()
        }
    }
}
