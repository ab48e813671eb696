//! What speaks for and against giving a worker requests.

use std::time::Duration;

use routing::{Breaker, Circuit, Health, Verdict};

/// How long a worker that refused a request is spared; twice as long each time in a row.
const INITIAL_BUSY: Duration = Duration::from_millis(50);
/// How long a failure to come up is told as what became of the registration.
const FAILURE_SHOWN_FOR: Duration = Duration::from_mins(5);
/// Up to 1.6 s.
const MAX_DOUBLINGS: u32 = 5;

/// A worker's standing: its probes, its breaker, and what was decided about it.
#[derive(Debug)]
pub(crate) struct WorkerState {
    pub(super) health: Health,
    /// `None` when breakers are off.
    pub(super) breaker: Option<Breaker>,
    /// It is leaving: what it has may finish, nothing new comes.
    pub(super) draining: bool,
    /// An outlier among its peers rests until then.
    pub(super) ejected_until: Option<Duration>,
    /// It had too much to do: until then others come first.
    pub(super) busy_until: Option<Duration>,
    /// Times in a row that it had.
    pub(super) refusals: u32,
    /// When it came back from being away.
    pub(super) recovered_at: Option<Duration>,
    /// When it came, if others were working by then.
    pub(super) joined_at: Option<Duration>,
    /// When it was found that it had not come up in time.
    pub(super) failed_at: Option<Duration>,
}

/// The registration of a worker that has not been ready yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegistrationStatus {
    /// It did not come up in time.
    pub(crate) failed: bool,
    /// How long it has been so.
    pub(crate) age: Duration,
}

/// A standing at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Availability {
    pub(crate) verdict: Verdict,
    pub(crate) circuit: Circuit,
    pub(crate) draining: bool,
    /// Its probes pass and it is not leaving.
    pub(crate) ready: bool,
    /// It gets requests.
    pub(crate) selectable: bool,
    /// It gets requests when nobody better is there: it rests, is busy, or is being probed.
    pub(crate) fallback: bool,
    /// It counts among those who serve its model: it has been ready once, and is not leaving.
    pub(super) serves: bool,
    /// Nothing is held against it.
    pub(super) clean: bool,
}

impl WorkerState {
    pub(crate) fn new(
        health: Health,
        breaker: Option<Breaker>,
        joined_at: Option<Duration>,
    ) -> Self {
        Self {
            health,
            breaker,
            draining: false,
            ejected_until: None,
            busy_until: None,
            refusals: 0,
            recovered_at: None,
            joined_at,
            failed_at: None,
        }
    }

    pub(super) fn availability(&self) -> Availability {
        let verdict = self.health.verdict();
        let breaker = self.breaker.as_ref();
        let allowed = breaker.is_none_or(Breaker::allows);
        // A suspect is believed to be well until a probe says otherwise.
        let ready = matches!(verdict, Verdict::Ready | Verdict::Suspect) && !self.draining;
        let came_up = !matches!(verdict, Verdict::Pending | Verdict::Failed);
        let spared = self.ejected_until.is_some() || self.busy_until.is_some();
        let fallback = verdict == Verdict::Suspect || spared;
        Availability {
            verdict,
            circuit: breaker.map_or(Circuit::Closed, Breaker::circuit),
            draining: self.draining,
            ready,
            selectable: ready && allowed && !fallback,
            fallback: ready && allowed && fallback,
            serves: came_up && !self.draining,
            clean: breaker.is_none_or(Breaker::is_clean) && self.refusals == 0,
        }
    }

    /// What is being done about it as long as it has never been ready.
    pub(super) fn job(&self, now: Duration) -> Option<RegistrationStatus> {
        let joined_at = self.joined_at.unwrap_or_default();
        let (failed, since) = match self.health.verdict() {
            _ if self.draining => return None,
            Verdict::Pending => (false, joined_at),
            Verdict::Failed => (true, self.failed_at.unwrap_or(joined_at)),
            _ => return None,
        };
        let age = now.saturating_sub(since);
        (!failed || age < FAILURE_SHOWN_FOR).then_some(RegistrationStatus { failed, age })
    }

    /// It refused a request for want of room: for a moment others come first. Tells for how
    /// long, unless it was busy already.
    pub(super) fn record_refusal(&mut self, now: Duration) -> Option<Duration> {
        if self.busy_until.is_some() {
            return None;
        }
        let pause = INITIAL_BUSY * 2_u32.pow(self.refusals.min(MAX_DOUBLINGS));
        self.refusals += 1;
        self.busy_until = Some(now + pause);
        Some(pause)
    }

    /// Time goes by: an open breaker half-opens, a rest ends, a return is long ago.
    pub(super) fn advance(&mut self, now: Duration, slow_start: Duration) {
        if let Some(breaker) = &mut self.breaker {
            breaker.advance(now);
        }
        self.ejected_until = self.ejected_until.filter(|until| *until > now);
        self.busy_until = self.busy_until.filter(|until| *until > now);
        self.recovered_at = self
            .recovered_at
            .filter(|recovered_at| now.saturating_sub(*recovered_at) < slow_start);
    }
}

impl Availability {
    /// The word `GET /workers` uses.
    pub(crate) fn status(self) -> &'static str {
        if self.draining {
            "draining"
        } else {
            self.verdict.as_str()
        }
    }
}
