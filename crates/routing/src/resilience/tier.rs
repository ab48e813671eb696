//! Which workers may have a request: the preferred ones, and those of last resort.

use super::health::Verdict;

/// What is known of a worker at the moment of a choice.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The verdict of its probes.
    pub verdict: Verdict,
    /// Its breaker lets a request through.
    pub allowed: bool,
    /// Others are preferred: it is ejected as an outlier, or busy.
    pub spared: bool,
}

/// What a worker may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Requests.
    Selectable,
    /// Requests that no other worker may have: it is ejected, busy, or suspect.
    Fallback,
    /// Nothing: it is ready, but its breaker lets no request through.
    Rejected,
    /// Nothing: it is not ready.
    Unavailable,
}

impl Standing {
    /// What follows. A suspect counts as ready until a probe says otherwise.
    pub fn tier(self) -> Tier {
        match self.verdict {
            Verdict::Ready | Verdict::Suspect if !self.allowed => Tier::Rejected,
            Verdict::Ready if !self.spared => Tier::Selectable,
            Verdict::Ready | Verdict::Suspect => Tier::Fallback,
            Verdict::Pending | Verdict::NotReady | Verdict::Failed => Tier::Unavailable,
        }
    }
}

/// Whether so many breakers of a pool let nothing through that their workers become a last
/// resort, too: half of the workers that are ready, or more. It is then likelier that the
/// requests are at fault (Envoy calls this the panic threshold).
pub fn is_panicking(rejected: usize, passing: usize) -> bool {
    rejected > 0 && rejected >= passing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_has_requests_by_its_verdict_its_breaker_and_what_spares_it() {
        let tier = |verdict, allowed, spared| {
            let standing = Standing {
                verdict,
                allowed,
                spared,
            };
            standing.tier()
        };
        assert_eq!(tier(Verdict::Ready, true, false), Tier::Selectable);
        assert_eq!(tier(Verdict::Ready, true, true), Tier::Fallback);
        assert_eq!(tier(Verdict::Suspect, true, false), Tier::Fallback);
        assert_eq!(tier(Verdict::Suspect, false, true), Tier::Rejected);
        for verdict in [Verdict::Pending, Verdict::NotReady, Verdict::Failed] {
            assert_eq!(tier(verdict, true, false), Tier::Unavailable);
        }
    }

    #[test]
    fn half_of_the_breakers_open_is_a_panic_and_less_is_not() {
        assert!(is_panicking(1, 1) && is_panicking(2, 0));
        assert!(!is_panicking(0, 0) && !is_panicking(1, 2));
    }
}
