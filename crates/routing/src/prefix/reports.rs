//! What replies say of one worker's cache, and what of the index's belief they disprove.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::ids::{Stamp, is_before};

/// Doubt at which a cache counts as emptied.
const CERTAIN: u32 = 9;
/// Doubt of a failed prediction that eviction does not explain: three in a row are enough.
const UNEXPLAINED: u32 = 3;
/// Doubt of one that eviction explains, too: nine in a row without anything that was found.
const EXPLAINED: u32 = 1;
/// With every prediction that is looked at, the age that counts as proven shrinks by this share.
const FADING: u32 = 16;

/// What replies have said of one worker's cache.
///
/// An engine evicts what was least recently used. So a reply whose prompt was not cached, though
/// it was used at a stamp, says that nothing is left of what was not used later. That holds for
/// evictions that the clock does not know of. When content is gone that is younger than other
/// content that was found lately, the cache has been emptied: by a restart or a flush.
#[derive(Debug, Default)]
pub(super) struct CacheReports {
    /// Uses up to this stamp are in the cache: their replies have begun, or later ones have.
    settled: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By [`ReportKind`]: a reply has named cached tokens since the cache was last found empty.
    credible: [bool; 2],
    /// Nothing that was last used before is in the cache.
    floor: Stamp,
    /// An age in blocks at which content was found cached lately.
    proven: u32,
    suspicion: Option<Suspicion>,
}

/// The cache may have been emptied.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    /// The worker's clock at the first decision whose prediction failed.
    since: Stamp,
    doubt: u32,
}

/// Which replies name cached tokens: an engine may leave them out of some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// Those of the engine's own API, which always do.
    Native,
    /// Those of other APIs, which do so by an option of the engine.
    Compatible,
}

/// A reply, held against what was believed when its request was routed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    pub(super) kind: ReportKind,
    /// The reply names cached tokens at all.
    pub(super) names_some: bool,
    /// The last use of the content before.
    pub(super) last_use: Stamp,
    /// The worker's clock at the decision.
    pub(super) decided: Stamp,
    pub(super) state: CacheState,
}

/// Whether content was in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheState {
    Held,
    Lost,
    /// Nothing follows: too little was predicted, or its last use had not begun.
    Unclear,
}

/// What of a belief is disproved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disproof {
    /// Nothing that was last used before is in the cache.
    pub(super) floor: Stamp,
    /// The cache was emptied.
    pub(super) emptied: bool,
}

impl CacheReports {
    /// Uses up to this stamp are in the cache.
    pub(super) fn settle(&self, stamp: Stamp) {
        if is_before(self.settled.load(Relaxed), stamp) {
            // Of two at the same moment the earlier one may win: the next reply makes up for it.
            self.settled.store(stamp, Relaxed);
        }
    }

    /// Whether a use is in the cache, and not on its way.
    pub(super) fn is_settled(&self, stamp: Stamp) -> bool {
        !is_before(self.settled.load(Relaxed), stamp)
    }

    /// Takes note of a reply.
    pub(super) fn note(&self, finding: Finding) -> Option<Disproof> {
        // Of two at the same moment one is left out: nothing waits for this.
        self.state.try_lock().ok()?.note(finding)
    }
}

impl State {
    fn note(&mut self, finding: Finding) -> Option<Disproof> {
        let credible = &mut self.credible[finding.kind as usize];
        *credible |= finding.names_some;
        if !*credible || is_before(finding.last_use, self.floor) {
            return None;
        }
        let age = finding.decided.wrapping_sub(finding.last_use);
        match finding.state {
            CacheState::Unclear => None,
            CacheState::Held => {
                self.proven = age.max(self.faded());
                self.suspicion = self.suspicion.filter(|it| !it.is_refuted_by(finding));
                None
            }
            CacheState::Lost if age > self.proven => {
                // It was used before all that is known to be there.
                self.floor = finding.last_use.wrapping_add(1);
                let evicted = Disproof {
                    floor: self.floor,
                    emptied: false,
                };
                self.doubt(finding, EXPLAINED).or(Some(evicted))
            }
            CacheState::Lost => {
                self.proven = self.faded();
                self.doubt(finding, UNEXPLAINED)
            }
        }
    }

    /// Content is gone, and the more so the less eviction explains it.
    fn doubt(&mut self, finding: Finding, doubt: u32) -> Option<Disproof> {
        let earlier = self.suspicion.filter(|it| it.explains(finding));
        let suspicion = Suspicion {
            since: earlier.map_or(finding.decided, |it| it.since),
            doubt: earlier.map_or(0, |it| it.doubt) + doubt,
        };
        if suspicion.doubt < CERTAIN {
            self.suspicion = Some(suspicion);
            return None;
        }
        *self = Self {
            floor: suspicion.since.wrapping_add(1),
            ..Self::default()
        };
        Some(Disproof {
            floor: self.floor,
            emptied: true,
        })
    }

    fn faded(&self) -> u32 {
        self.proven - self.proven.div_ceil(FADING)
    }
}

impl Suspicion {
    /// Whether content is gone because the cache was emptied then.
    fn explains(self, finding: Finding) -> bool {
        !is_before(self.since, finding.last_use)
    }

    /// Whether a later request has found content from before.
    fn is_refuted_by(self, finding: Finding) -> bool {
        self.explains(finding) && !is_before(finding.decided, self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply to a request that was decided on at `decided`, for content last used at `last_use`.
    fn finding(last_use: Stamp, decided: Stamp, state: CacheState) -> Finding {
        Finding {
            kind: ReportKind::Native,
            names_some: state == CacheState::Held,
            last_use,
            decided,
            state,
        }
    }

    fn held(reports: &CacheReports, last_use: Stamp, decided: Stamp) {
        let found = reports.note(finding(last_use, decided, CacheState::Held));
        assert_eq!(found, None);
    }

    fn lost(reports: &CacheReports, last_use: Stamp, decided: Stamp) -> Option<Disproof> {
        reports.note(finding(last_use, decided, CacheState::Lost))
    }

    #[test]
    fn engine_that_never_named_cached_tokens_disproves_nothing() {
        let reports = CacheReports::default();
        for decided in 100..200 {
            assert_eq!(lost(&reports, 50, decided), None);
        }
        let compatible = Finding {
            kind: ReportKind::Compatible,
            ..finding(50, 200, CacheState::Lost)
        };
        held(&reports, 60, 201);
        assert_eq!(reports.note(compatible), None, "its own API does, not this");
        assert!(lost(&reports, 50, 202).is_some());
    }

    #[test]
    fn eviction_takes_what_was_not_used_later() {
        let reports = CacheReports::default();
        held(&reports, 900, 1000);
        let evicted = Disproof {
            floor: 701,
            emptied: false,
        };
        assert_eq!(lost(&reports, 700, 1000), Some(evicted));
        assert_eq!(lost(&reports, 600, 1000), None, "known already");
    }

    #[test]
    fn young_content_that_is_gone_three_times_means_an_emptied_cache() {
        let reports = CacheReports::default();
        held(&reports, 100, 1000);
        assert_eq!(lost(&reports, 990, 1001), None);
        assert_eq!(lost(&reports, 980, 1010), None);
        held(&reports, 1005, 1020);
        let emptied = Disproof {
            floor: 1002,
            emptied: true,
        };
        assert_eq!(lost(&reports, 970, 1030), Some(emptied));
        // It names none from now on: nothing follows.
        assert_eq!(lost(&reports, 1025, 1040), None);
    }

    #[test]
    fn nothing_found_any_more_means_an_emptied_cache_also_if_all_of_it_was_old() {
        let reports = CacheReports::default();
        held(&reports, 990, 1000);
        let found = (0..9).map(|round| lost(&reports, 500 + 10 * round, 1001 + 20 * round));
        let emptied = found.map(|it| it.map(|it| it.emptied)).collect::<Vec<_>>();
        assert_eq!(emptied[..8], [Some(false); 8]);
        assert_eq!(emptied[8], Some(true));
    }

    #[test]
    fn content_from_before_that_is_found_clears_the_suspicion() {
        let reports = CacheReports::default();
        held(&reports, 100, 1000);
        for round in 0..20 {
            let now = 1100 + 10 * round;
            assert_eq!(lost(&reports, now - 50, now), None);
            assert_eq!(lost(&reports, now - 60, now + 1), None);
            held(&reports, now - 900, now + 2);
        }
    }

    #[test]
    fn request_from_before_the_first_failure_clears_no_suspicion() {
        let reports = CacheReports::default();
        held(&reports, 100, 1000);
        assert_eq!(lost(&reports, 990, 1001), None);
        held(&reports, 500, 1000);
        assert_eq!(lost(&reports, 980, 1002), None);
        assert!(lost(&reports, 985, 1003).is_some_and(|it| it.emptied));
    }

    #[test]
    fn later_failure_that_the_first_does_not_explain_begins_anew() {
        let reports = CacheReports::default();
        held(&reports, 100, 1000);
        assert_eq!(lost(&reports, 990, 1001), None);
        assert_eq!(lost(&reports, 4990, 5001), None);
        assert_eq!(lost(&reports, 4985, 5002), None);
        let found = lost(&reports, 4980, 5003).unwrap();
        assert_eq!((found.floor, found.emptied), (5002, true));
    }

    #[test]
    fn uses_are_settled_by_replies_to_them_or_to_later_ones() {
        let reports = CacheReports::default();
        reports.settle(u32::MAX - 5);
        assert!(reports.is_settled(u32::MAX - 9) && !reports.is_settled(3));
        reports.settle(4);
        reports.settle(2);
        assert!(reports.is_settled(4) && reports.is_settled(u32::MAX) && !reports.is_settled(5));
    }
}
