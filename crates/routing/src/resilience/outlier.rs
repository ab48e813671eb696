//! Outlier detection: ejects workers that do much worse than their peers for a while.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

/// Requests that a worker needs in a window to be compared; with fewer, noise prevails.
const MIN_REQUESTS: u64 = 20;
/// Comparable workers that are needed for any verdict.
const MIN_PEERS: usize = 3;
/// An outlier exceeds the median of the others by this factor.
const FACTOR: f64 = 3.0;
/// A failure ratio below this never makes an outlier.
const MIN_FAILURE_RATIO: f64 = 0.1;
/// The same for refusals: a few clients that err stay on one worker by affinity.
const MIN_REFUSAL_RATIO: f64 = 0.3;
/// The duration of the first ejection; each further one is longer by as much.
const EJECTION: Duration = Duration::from_secs(30);
/// The longest ejection, in multiples of the first.
const MAX_EJECTION_MULTIPLE: u32 = 10;

/// The requests of one worker since the last detection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Attempts that ended.
    pub requests: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts that the worker refused as the client's fault (4xx).
    pub refusals: u64,
    /// Sum of the times to first byte.
    pub waited: Duration,
    /// Uncached prompt tokens of the requests that got a first byte.
    pub tokens: u64,
}

impl Window {
    fn failure_ratio(&self) -> f64 {
        self.failures as f64 / self.requests.max(1) as f64
    }

    fn refusal_ratio(&self) -> f64 {
        self.refusals as f64 / self.requests.max(1) as f64
    }

    /// Seconds to first byte per prompt token.
    fn secs_per_token(&self) -> f64 {
        self.waited.as_secs_f64() / self.tokens.max(1) as f64
    }
}

/// Why a worker is ejected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OutlierReason {
    /// Its failure ratio.
    Failing(f64),
    /// The ratio of requests that it refuses as the client's fault, and its peers do not.
    Refusing(f64),
    /// Its time to first byte per prompt token, in multiples of the others' median.
    Slow(f64),
}

/// A worker that for a while gets requests only if no other can take them.
#[derive(Clone, Copy, Debug)]
pub struct Ejection {
    /// The worker's slot.
    pub slot: usize,
    /// The reason.
    pub reason: OutlierReason,
    /// The end of the ejection, on the caller's clock.
    pub until: Duration,
}

/// The ejected workers, and the number of ejections that count for each worker.
#[derive(Clone, Debug)]
pub struct Outliers {
    /// At most this share of the fleet is ejected at a time; one worker always may be.
    share: f64,
    /// By slot.
    ejected_until: BTreeMap<usize, Duration>,
    /// By slot; the next ejection is longer by each.
    ejections: BTreeMap<usize, u32>,
}

impl Outliers {
    /// No ejections so far; at most `share` (0 to 1) of the fleet at a time.
    pub fn new(share: f64) -> Self {
        Self {
            share,
            ejected_until: BTreeMap::new(),
            ejections: BTreeMap::new(),
        }
    }

    /// Compares the workers' windows, by slot, and ejects outliers of a fleet of `fleet` workers.
    pub fn detect(
        &mut self,
        windows: &BTreeMap<usize, Window>,
        fleet: usize,
        now: Duration,
    ) -> Vec<Ejection> {
        self.ejected_until.retain(|_, until| *until > now);
        let comparable: BTreeMap<usize, Window> = windows
            .iter()
            .filter(|(_, window)| window.requests >= MIN_REQUESTS)
            .map(|(slot, window)| (*slot, *window))
            .collect();
        let mut outliers: Vec<(usize, OutlierReason)> = comparable
            .iter()
            .filter(|(slot, _)| !self.ejected_until.contains_key(slot))
            .filter_map(|(slot, _)| Some((*slot, reason(*slot, &comparable)?)))
            .collect();
        outliers.sort_by(|(_, one), (_, other)| worst_first(*one, *other));
        let mut ejected = Vec::new();
        for (slot, reason) in outliers {
            if self.may_eject(fleet) {
                ejected.push(self.eject(slot, reason, now));
            }
        }
        self.forgive(&comparable);
        ejected
    }

    /// Drops the record of a slot, because its worker has left.
    pub fn forget(&mut self, slot: usize) {
        self.ejected_until.remove(&slot);
        self.ejections.remove(&slot);
    }

    /// Whether one more worker may be ejected.
    fn may_eject(&self, fleet: usize) -> bool {
        let with_one_more = (self.ejected_until.len() + 1) as f64;
        self.ejected_until.is_empty() || with_one_more <= fleet as f64 * self.share
    }

    fn eject(&mut self, slot: usize, reason: OutlierReason, now: Duration) -> Ejection {
        let ejections = self.ejections.entry(slot).or_default();
        *ejections = (*ejections + 1).min(MAX_EJECTION_MULTIPLE);
        let until = now + EJECTION * *ejections;
        self.ejected_until.insert(slot, until);
        Ejection {
            slot,
            reason,
            until,
        }
    }

    /// Counts one ejection less for each comparable worker that is not ejected.
    fn forgive(&mut self, comparable: &BTreeMap<usize, Window>) {
        let ejected_until = &self.ejected_until;
        self.ejections.retain(|slot, ejections| {
            if comparable.contains_key(slot) && !ejected_until.contains_key(slot) {
                *ejections -= 1;
            }
            *ejections > 0
        });
    }
}

fn reason(slot: usize, comparable: &BTreeMap<usize, Window>) -> Option<OutlierReason> {
    if comparable.len() < MIN_PEERS {
        return None;
    }
    let median_of_others = |measure: fn(&Window) -> f64| {
        let others = comparable.iter().filter(|(other, _)| **other != slot);
        median(others.map(|(_, window)| measure(window)).collect())
    };
    let own = comparable.get(&slot)?;
    let failure_ratio = own.failure_ratio();
    if failure_ratio >= MIN_FAILURE_RATIO
        && failure_ratio > FACTOR * median_of_others(Window::failure_ratio)
    {
        return Some(OutlierReason::Failing(failure_ratio));
    }
    let refusal_ratio = own.refusal_ratio();
    if refusal_ratio >= MIN_REFUSAL_RATIO
        && refusal_ratio > FACTOR * median_of_others(Window::refusal_ratio)
    {
        return Some(OutlierReason::Refusing(refusal_ratio));
    }
    let usual = median_of_others(Window::secs_per_token).max(f64::MIN_POSITIVE);
    let slowness = own.secs_per_token() / usual;
    (own.tokens > 0 && slowness > FACTOR).then_some(OutlierReason::Slow(slowness))
}

fn worst_first(one: OutlierReason, other: OutlierReason) -> Ordering {
    let by_kind = |reason| match reason {
        OutlierReason::Failing(ratio) => (0, ratio),
        OutlierReason::Refusing(ratio) => (1, ratio),
        OutlierReason::Slow(factor) => (2, factor),
    };
    let ((kind, measure), (other_kind, other_measure)) = (by_kind(one), by_kind(other));
    kind.cmp(&other_kind)
        .then(other_measure.total_cmp(&measure))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn window(failures: u64, millis_per_request: u64) -> Window {
        Window {
            requests: 100,
            failures,
            refusals: 0,
            waited: Duration::from_millis(100 * millis_per_request),
            tokens: 10_000,
        }
    }

    fn fleet(workers: &[Window]) -> BTreeMap<usize, Window> {
        workers.iter().copied().enumerate().collect()
    }

    fn ejected(outliers: &mut Outliers, workers: &[Window], now: u64) -> Vec<usize> {
        let ejections = outliers.detect(&fleet(workers), workers.len(), secs(now));
        ejections.iter().map(|ejection| ejection.slot).collect()
    }

    #[test]
    fn equal_workers_are_not_ejected() {
        for worker in [window(0, 50), window(30, 50), window(100, 5000)] {
            let mut outliers = Outliers::new(0.5);
            assert!(ejected(&mut outliers, &[worker; 4], 0).is_empty());
        }
    }

    #[test]
    fn failing_or_slow_worker_is_ejected() {
        let healthy = window(1, 50);
        for outlier in [window(20, 50), window(1, 200)] {
            let mut outliers = Outliers::new(0.2);
            assert_eq!(
                ejected(&mut outliers, &[healthy, healthy, outlier, healthy], 0),
                [2]
            );
        }
    }

    #[test]
    fn ejections_are_limited_to_share_of_fleet_worst_first() {
        let (healthy, failing, worst) = (window(0, 50), window(30, 50), window(60, 50));
        let workers = [
            failing, healthy, worst, healthy, healthy, healthy, healthy, healthy, healthy, healthy,
        ];
        assert_eq!(ejected(&mut Outliers::new(0.1), &workers, 0), [2]);
        assert_eq!(ejected(&mut Outliers::new(0.2), &workers, 0), [2, 0]);
        let mut outliers = Outliers::new(0.1);
        ejected(&mut outliers, &workers, 0);
        assert!(ejected(&mut outliers, &workers, 10).is_empty());
        assert_eq!(ejected(&mut outliers, &workers, 31), [2]);
    }

    #[test]
    fn ejections_grow_with_repetition_and_shrink_with_success() {
        let (healthy, failing) = (window(0, 50), window(60, 50));
        let mut outliers = Outliers::new(0.5);
        let workers = fleet(&[failing, healthy, healthy, healthy]);
        assert_eq!(outliers.detect(&workers, 4, secs(0))[0].until, secs(30));
        assert_eq!(outliers.detect(&workers, 4, secs(40))[0].until, secs(100));
        let all_healthy = fleet(&[healthy; 4]);
        outliers.detect(&all_healthy, 4, secs(110));
        outliers.detect(&all_healthy, 4, secs(120));
        assert_eq!(outliers.detect(&workers, 4, secs(130))[0].until, secs(160));
    }

    #[test]
    fn next_worker_of_a_slot_has_no_earlier_ejections() {
        let (healthy, failing) = (window(0, 50), window(60, 50));
        let mut outliers = Outliers::new(0.5);
        let workers = fleet(&[failing, healthy, healthy, healthy]);
        outliers.detect(&workers, 4, secs(0));
        outliers.forget(0);
        assert_eq!(outliers.detect(&workers, 4, secs(1))[0].until, secs(31));
    }

    #[test]
    fn too_few_requests_or_workers_give_no_verdict() {
        let (healthy, failing) = (window(0, 50), window(90, 50));
        assert!(ejected(&mut Outliers::new(0.5), &[healthy, failing], 0).is_empty());
        let few = Window {
            requests: 19,
            ..failing
        };
        assert!(
            ejected(
                &mut Outliers::new(0.5),
                &[healthy, healthy, healthy, few],
                0
            )
            .is_empty()
        );
    }

    proptest! {
        #[test]
        fn ejected_workers_never_exceed_the_share(
            rounds in prop::collection::vec(
                prop::collection::vec((0..100_u64, 0..500_u64), 8), 1..20,
            ),
            share in 0.0..1.0_f64,
        ) {
            let mut outliers = Outliers::new(share);
            for (round, workers) in rounds.iter().enumerate() {
                let workers: Vec<_> = workers.iter().map(|&(f, ms)| window(f, ms)).collect();
                ejected(&mut outliers, &workers, round as u64 * 10);
                prop_assert!(outliers.ejected_until.len() as f64 <= (8.0 * share).max(1.0));
            }
        }
    }
}
