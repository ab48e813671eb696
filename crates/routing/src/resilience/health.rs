//! How many probes in a row change a worker's verdict.

/// Probes in a row that flip a verdict; both at least 1.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Failures in a row that make a ready worker not ready.
    pub failure: u32,
    /// Successes in a row that make a not-ready worker ready again.
    pub success: u32,
}

/// Whether a worker may get requests, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Never answered a probe yet.
    Pending,
    /// Gets requests.
    Ready,
    /// Was ready until an exchange with it failed; a probe is under way.
    Suspect,
    /// Was ready; its probes fail.
    NotReady,
    /// Did not come up within the start-up time. Still probed, at a slow pace.
    Failed,
}

impl Verdict {
    /// The word `GET /workers` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            // Believed to be well until a probe says otherwise.
            Self::Ready | Self::Suspect => "ready",
            Self::NotReady => "not_ready",
            Self::Failed => "failed",
        }
    }
}

/// A worker's record of probes.
#[derive(Clone, Debug)]
pub struct Health {
    thresholds: Thresholds,
    verdict: Verdict,
    streak: u32,
}

impl Health {
    /// A worker nobody has probed yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            verdict: Verdict::Pending,
            streak: 0,
        }
    }

    /// The verdict so far.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Takes a probe's result; tells the new verdict.
    ///
    /// The first success makes a starting worker ready: it had to come up, not to recover.
    pub fn record(&mut self, passed: bool) -> Verdict {
        match (self.verdict, passed) {
            (Verdict::Pending | Verdict::Failed | Verdict::Suspect, true) => {
                self.turn(Verdict::Ready);
            }
            (Verdict::Suspect, false) => self.turn(Verdict::NotReady),
            (Verdict::Ready, false) => self.count(self.thresholds.failure, Verdict::NotReady),
            (Verdict::NotReady, true) => self.count(self.thresholds.success, Verdict::Ready),
            (Verdict::Ready, true) | (_, false) => self.streak = 0,
        }
        self.verdict
    }

    /// An exchange with the worker failed in a way that it may be gone: the next probe decides.
    pub fn suspect(&mut self) {
        if self.verdict == Verdict::Ready {
            self.turn(Verdict::Suspect);
        }
    }

    /// From now on these thresholds hold.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// A worker that did not come up in time is given the start-up time once more.
    pub fn start_over(&mut self) {
        if self.verdict == Verdict::Failed {
            self.turn(Verdict::Pending);
        }
    }

    /// The start-up time is over: a worker that never came up has failed.
    pub fn give_up(&mut self) {
        if self.verdict == Verdict::Pending {
            self.turn(Verdict::Failed);
        }
    }

    fn count(&mut self, needed: u32, next: Verdict) {
        self.streak += 1;
        if self.streak >= needed {
            self.turn(next);
        }
    }

    fn turn(&mut self, next: Verdict) {
        self.verdict = next;
        self.streak = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health::new(Thresholds {
            failure: 3,
            success: 2,
        })
    }

    fn after(probes: &[bool]) -> Verdict {
        let mut health = health();
        for &passed in probes {
            health.record(passed);
        }
        health.verdict()
    }

    #[test]
    fn a_starting_worker_is_ready_at_its_first_answer() {
        assert_eq!(after(&[]), Verdict::Pending);
        assert_eq!(after(&[false, false, false, false]), Verdict::Pending);
        assert_eq!(after(&[false, true]), Verdict::Ready);
    }

    #[test]
    fn only_failures_in_a_row_make_a_worker_not_ready() {
        assert_eq!(after(&[true, false, false]), Verdict::Ready);
        assert_eq!(
            after(&[true, false, false, true, false, false]),
            Verdict::Ready
        );
        assert_eq!(after(&[true, false, false, false]), Verdict::NotReady);
    }

    #[test]
    fn only_successes_in_a_row_bring_it_back() {
        let down = [true, false, false, false];
        assert_eq!(after(&[&down[..], &[true]].concat()), Verdict::NotReady);
        assert_eq!(
            after(&[&down[..], &[true, false, true]].concat()),
            Verdict::NotReady
        );
        assert_eq!(after(&[&down[..], &[true, true]].concat()), Verdict::Ready);
    }

    #[test]
    fn one_probe_decides_about_a_suspect() {
        for (passed, verdict) in [(true, Verdict::Ready), (false, Verdict::NotReady)] {
            let mut health = health();
            health.record(true);
            health.suspect();
            assert_eq!(health.verdict(), Verdict::Suspect);
            assert_eq!(health.record(passed), verdict);
        }
    }

    #[test]
    fn only_a_ready_worker_can_become_suspect() {
        let mut health = health();
        health.suspect();
        assert_eq!(health.verdict(), Verdict::Pending);
    }

    #[test]
    fn a_worker_that_never_came_up_has_failed_but_may_still_come() {
        let mut health = health();
        health.give_up();
        assert_eq!(health.verdict(), Verdict::Failed);
        health.start_over();
        assert_eq!(health.verdict(), Verdict::Pending);
        health.give_up();
        assert_eq!(health.record(true), Verdict::Ready);
        health.give_up();
        health.start_over();
        assert_eq!(health.verdict(), Verdict::Ready);
    }

    #[test]
    fn thresholds_may_change_while_a_worker_is_watched() {
        let mut health = health();
        health.record(true);
        health.set_thresholds(Thresholds {
            failure: 1,
            success: 1,
        });
        assert_eq!(health.record(false), Verdict::NotReady);
        assert_eq!(health.record(true), Verdict::Ready);
    }
}
