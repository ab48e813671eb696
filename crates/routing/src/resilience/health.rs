//! Health: the number of probes in a row that changes the verdict on a worker.

/// Probes in a row that change a verdict; both at least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Failures in a row that make a ready worker not ready.
    pub failure: u32,
    /// Successes in a row that make a not-ready worker ready again.
    pub success: u32,
}

/// Whether a worker may get requests; if not, the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Has not passed a probe yet.
    Pending,
    /// Gets requests.
    Ready,
    /// Was ready until a request failed there; a probe is under way.
    Suspect,
    /// Was ready; its probes fail.
    NotReady,
    /// Passed no probe within the start-up time. It is still probed, at a slow pace.
    Failed,
}

impl Verdict {
    /// The word `GET /workers` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            // A suspect counts as ready until a probe fails.
            Self::Ready | Self::Suspect => "ready",
            Self::NotReady => "not_ready",
            Self::Failed => "failed",
        }
    }
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A success.
    Passed,
    /// No answer in time, or another answer.
    Failed,
    /// The connection was refused or lost: most likely there is no process.
    Refused,
}

/// The verdict on one worker, and the probes since its last change.
#[derive(Clone, Debug)]
pub struct Health {
    thresholds: Thresholds,
    verdict: Verdict,
    /// Passed probes in a row since the verdict.
    passed: u32,
    /// Failed probes in a row.
    failed: u32,
    lost: bool,
}

impl Health {
    /// A worker without probes so far.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            verdict: Verdict::Pending,
            passed: 0,
            failed: 0,
            lost: false,
        }
    }

    /// The present verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether requests at the worker are lost. A worker may get nothing new because it is slow
    /// to answer a probe, and still finish what it has.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Records the result of a probe and returns the new verdict.
    ///
    /// The first success makes a starting worker ready, because it had no failure to recover
    /// from.
    pub fn record(&mut self, probe: Probe) -> Verdict {
        if probe == Probe::Passed {
            self.record_passed();
        } else {
            self.record_failed(probe);
        }
        self.verdict
    }

    fn record_passed(&mut self) {
        self.failed = 0;
        match self.verdict {
            Verdict::Pending | Verdict::Failed | Verdict::Suspect => {
                self.set_verdict(Verdict::Ready);
            }
            Verdict::NotReady => {
                self.passed += 1;
                if self.passed >= self.thresholds.success {
                    self.set_verdict(Verdict::Ready);
                }
            }
            Verdict::Ready => {}
        }
    }

    fn record_failed(&mut self, probe: Probe) {
        self.passed = 0;
        self.failed = self.failed.saturating_add(1);
        let enough = self.failed >= self.thresholds.failure;
        match self.verdict {
            Verdict::Ready if enough => self.set_verdict(Verdict::NotReady),
            Verdict::Suspect => self.set_verdict(Verdict::NotReady),
            Verdict::Ready | Verdict::NotReady | Verdict::Pending | Verdict::Failed => {}
        }
        let down = self.verdict == Verdict::NotReady;
        self.lost |= down && (enough || probe == Probe::Refused);
    }

    /// Records a failure after which the worker may be gone. The next probe decides.
    pub fn suspect(&mut self) {
        if self.verdict == Verdict::Ready {
            self.set_verdict(Verdict::Suspect);
        }
    }

    /// Changes the thresholds.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// Gives a failed worker the start-up time once more.
    pub fn start_over(&mut self) {
        if self.verdict == Verdict::Failed {
            self.set_verdict(Verdict::Pending);
        }
    }

    /// Ends the start-up time: a worker that is still pending has failed.
    pub fn give_up(&mut self) {
        if self.verdict == Verdict::Pending {
            self.set_verdict(Verdict::Failed);
        }
    }

    fn set_verdict(&mut self, next: Verdict) {
        self.verdict = next;
        self.passed = 0;
        if next == Verdict::Ready {
            self.lost = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: Probe = Probe::Passed;
    const FAILED: Probe = Probe::Failed;
    const REFUSED: Probe = Probe::Refused;

    fn health() -> Health {
        Health::new(Thresholds {
            failure: 3,
            success: 2,
        })
    }

    fn after(probes: &[Probe]) -> Verdict {
        let mut health = health();
        for &passed in probes {
            health.record(passed);
        }
        health.verdict()
    }

    #[test]
    fn first_passed_probe_makes_pending_worker_ready() {
        assert_eq!(after(&[]), Verdict::Pending);
        assert_eq!(after(&[FAILED, FAILED, FAILED, FAILED]), Verdict::Pending);
        assert_eq!(after(&[FAILED, PASSED]), Verdict::Ready);
    }

    #[test]
    fn interrupted_failures_keep_worker_ready() {
        assert_eq!(after(&[PASSED, FAILED, FAILED]), Verdict::Ready);
        assert_eq!(
            after(&[PASSED, FAILED, FAILED, PASSED, FAILED, FAILED]),
            Verdict::Ready
        );
        assert_eq!(after(&[PASSED, FAILED, FAILED, FAILED]), Verdict::NotReady);
    }

    #[test]
    fn interrupted_successes_keep_worker_not_ready() {
        let down = [PASSED, FAILED, FAILED, FAILED];
        assert_eq!(after(&[&down[..], &[PASSED]].concat()), Verdict::NotReady);
        assert_eq!(
            after(&[&down[..], &[PASSED, FAILED, PASSED]].concat()),
            Verdict::NotReady
        );
        assert_eq!(
            after(&[&down[..], &[PASSED, PASSED]].concat()),
            Verdict::Ready
        );
    }

    #[test]
    fn single_probe_decides_on_suspect() {
        for (passed, verdict) in [(PASSED, Verdict::Ready), (FAILED, Verdict::NotReady)] {
            let mut health = health();
            health.record(PASSED);
            health.suspect();
            assert_eq!(health.verdict(), Verdict::Suspect);
            assert_eq!(health.record(passed), verdict);
        }
    }

    fn suspected(probes: &[Probe]) -> (Verdict, bool) {
        let mut health = health();
        health.record(PASSED);
        health.suspect();
        for &probe in probes {
            health.record(probe);
        }
        (health.verdict(), health.is_lost())
    }

    #[test]
    fn slow_probe_takes_a_suspect_out_but_does_not_end_what_it_has() {
        assert_eq!(suspected(&[FAILED]), (Verdict::NotReady, false));
        assert_eq!(suspected(&[FAILED, FAILED]), (Verdict::NotReady, false));
        assert_eq!(
            suspected(&[FAILED, PASSED, FAILED, FAILED]),
            (Verdict::NotReady, false)
        );
        assert_eq!(
            suspected(&[FAILED, FAILED, FAILED]),
            (Verdict::NotReady, true)
        );
    }

    #[test]
    fn refused_probe_of_a_suspect_says_that_requests_there_are_lost() {
        assert_eq!(suspected(&[REFUSED]), (Verdict::NotReady, true));
        assert_eq!(suspected(&[FAILED, REFUSED]), (Verdict::NotReady, true));
        assert_eq!(suspected(&[REFUSED, PASSED]), (Verdict::NotReady, true));
        assert_eq!(
            suspected(&[REFUSED, PASSED, PASSED]),
            (Verdict::Ready, false)
        );
    }

    #[test]
    fn refused_probe_alone_says_little_about_a_ready_worker() {
        let mut health = health();
        for probe in [PASSED, REFUSED, REFUSED] {
            health.record(probe);
        }
        assert_eq!(
            (health.verdict(), health.is_lost()),
            (Verdict::Ready, false)
        );
        health.record(REFUSED);
        assert_eq!(
            (health.verdict(), health.is_lost()),
            (Verdict::NotReady, true)
        );
    }

    #[test]
    fn pending_worker_does_not_become_suspect() {
        let mut health = health();
        health.suspect();
        assert_eq!(health.verdict(), Verdict::Pending);
    }

    #[test]
    fn worker_that_failed_to_start_becomes_ready_when_a_probe_passes() {
        let mut health = health();
        health.give_up();
        assert_eq!(health.verdict(), Verdict::Failed);
        health.start_over();
        assert_eq!(health.verdict(), Verdict::Pending);
        health.give_up();
        assert_eq!(health.record(PASSED), Verdict::Ready);
        health.give_up();
        health.start_over();
        assert_eq!(health.verdict(), Verdict::Ready);
    }

    #[test]
    fn changed_thresholds_apply_to_next_probe() {
        let mut health = health();
        health.record(PASSED);
        health.set_thresholds(Thresholds {
            failure: 1,
            success: 1,
        });
        assert_eq!(health.record(FAILED), Verdict::NotReady);
        assert_eq!(health.record(PASSED), Verdict::Ready);
    }
}
