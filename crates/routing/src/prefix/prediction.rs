//! What a decision believed of a worker's cache, to be held against the reply.

use std::sync::Arc;

use super::ids::Stamp;
use super::reports::{CacheReports, CacheState, Finding, ReportKind};
use crate::Prompt;

/// Fewer predicted tokens say nothing: pages, templates and estimates differ by as much.
const FEWEST: u64 = 256;
/// Tokens by which a report may miss a prediction in any case: a page of a cache has up to so many.
const TOLERANCE: u64 = 128;

/// The use of a worker's cache by one request, as the index records it.
#[derive(Clone, Debug)]
pub struct CacheUse {
    pub(super) reports: Arc<CacheReports>,
    /// The last use of what was cached before, if anything was.
    pub(super) last_use: Option<Stamp>,
    /// The worker's clock before, and after.
    pub(super) decided: Stamp,
    pub(super) stamp: Stamp,
}

/// What was believed of a worker's cache when a request was routed.
#[derive(Clone, Debug)]
pub struct Prediction {
    used: CacheUse,
    /// The last use of the content is in the cache, not on its way there.
    settled: bool,
    /// Prompt tokens believed to be cached.
    cached: u64,
    /// All of them.
    prompt: u64,
    /// No media: their tokens are estimates.
    is_exact: bool,
}

/// What a reply says of its prompt.
#[derive(Clone, Copy, Debug)]
pub struct CacheReport {
    /// Which replies say it.
    pub kind: ReportKind,
    /// Tokens of the prompt, if it names them.
    pub prompt: Option<u64>,
    /// Those of them that were cached.
    pub cached: u64,
}

/// A prediction and a report of one request.
#[derive(Debug)]
pub struct Comparison {
    /// Cached tokens that were predicted, as the engine counts tokens.
    pub predicted: u64,
    /// What follows for the worker's cache.
    pub correction: Option<Correction>,
}

/// A belief about a worker's cache that has turned out wrong.
#[derive(Clone, Debug)]
pub struct Correction {
    pub(super) reports: Arc<CacheReports>,
    /// Nothing that was last used before is in the cache.
    pub(super) floor: Stamp,
    /// The cache was emptied: the worker was restarted or flushed.
    pub emptied: bool,
}

impl Prediction {
    /// Of a prompt of which so many tokens are believed to be cached.
    pub(crate) fn new(used: CacheUse, cached: u64, prompt: &Prompt<'_>) -> Self {
        let last_use = used.last_use;
        Self {
            settled: last_use.is_some_and(|stamp| used.reports.is_settled(stamp)),
            used,
            cached,
            prompt: prompt.tokens(),
            is_exact: !prompt.has_media(),
        }
    }

    /// The reply has begun: the prompt is in the cache.
    pub fn first_byte(&self) {
        self.used.reports.settle(self.used.stamp);
    }

    /// Holds the report of the reply against it.
    pub fn compare(&self, report: CacheReport) -> Comparison {
        let predicted = self.as_counted(report);
        let last_use = self.used.last_use;
        let finding = Finding {
            kind: report.kind,
            names_some: report.cached > 0,
            last_use: last_use.unwrap_or(self.used.decided),
            decided: self.used.decided,
            state: if self.settled && self.is_exact {
                state(predicted, report.cached)
            } else {
                CacheState::Unclear
            },
        };
        let disproof = self.used.reports.note(finding);
        Comparison {
            predicted,
            correction: disproof.map(|disproof| Correction {
                reports: Arc::clone(&self.used.reports),
                floor: disproof.floor,
                emptied: disproof.emptied,
            }),
        }
    }

    /// The predicted tokens by the engine's count of the prompt: what a token is has been
    /// estimated.
    fn as_counted(&self, report: CacheReport) -> u64 {
        let Some(counted) = report.prompt.filter(|_| self.is_exact && self.prompt > 0) else {
            return self.cached;
        };
        // Anthropic's count leaves out what was cached.
        let counted = if counted < report.cached {
            counted.saturating_add(report.cached)
        } else {
            counted
        };
        let counted = counted.clamp(self.prompt / 4, self.prompt.saturating_mul(4));
        let scaled = u128::from(self.cached) * u128::from(counted) / u128::from(self.prompt);
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

/// What a report says of the content that was predicted.
fn state(predicted: u64, reported: u64) -> CacheState {
    let with_tolerance = reported.saturating_add(TOLERANCE);
    if predicted < FEWEST {
        CacheState::Unclear
    } else if with_tolerance <= predicted / 2 {
        CacheState::Lost
    } else if with_tolerance >= predicted - predicted / 4 {
        CacheState::Held
    } else {
        CacheState::Unclear
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(cached: u64, text: &[u8]) -> Prediction {
        let used = CacheUse {
            reports: Arc::default(),
            last_use: Some(0),
            decided: 10,
            stamp: 11,
        };
        Prediction::new(used, cached, &Prompt::text([text, b"", b""]))
    }

    fn report(prompt: u64, cached: u64) -> CacheReport {
        CacheReport {
            kind: ReportKind::Native,
            prompt: Some(prompt),
            cached,
        }
    }

    #[test]
    fn prediction_is_scaled_to_the_engines_count() {
        let text = [b'x'; 4000];
        let predicted = |prompt, cached| {
            let comparison = prediction(600, &text).compare(report(prompt, cached));
            comparison.predicted
        };
        assert_eq!(predicted(1000, 600), 600);
        assert_eq!(predicted(500, 300), 300);
        assert_eq!(predicted(400, 600), 600, "cached tokens beside the others");
        assert_eq!(predicted(1_000_000, 0), 2400);
        assert_eq!(predicted(0, 0), 150);
    }

    #[test]
    fn pages_and_templates_are_no_error() {
        for (predicted, reported, expected) in [
            (255, 0, CacheState::Unclear),
            (256, 0, CacheState::Lost),
            (256, 1, CacheState::Unclear),
            (1000, 372, CacheState::Lost),
            (1000, 500, CacheState::Unclear),
            (1000, 622, CacheState::Held),
            (1000, 9000, CacheState::Held),
        ] {
            assert_eq!(state(predicted, reported), expected, "{predicted}");
        }
    }

    #[test]
    fn content_on_its_way_to_the_cache_proves_nothing() {
        let reports = Arc::<CacheReports>::default();
        let text = [b'x'; 4000];
        let asked = |last_use, decided| {
            let used = CacheUse {
                reports: Arc::clone(&reports),
                last_use: Some(last_use),
                decided,
                stamp: decided + 1,
            };
            Prediction::new(used, 1000, &Prompt::text([&text, b"", b""]))
        };
        let first = asked(0, 10);
        first.first_byte();
        assert!(first.compare(report(1000, 900)).correction.is_none());
        // Its twin is not answered yet.
        let twin = asked(12, 20);
        assert!(twin.compare(report(1000, 0)).correction.is_none());
        let next = asked(11, 30);
        assert!(next.compare(report(1000, 0)).correction.is_some());
    }
}
