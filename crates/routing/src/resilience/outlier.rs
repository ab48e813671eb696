//! Which worker does so much worse than its peers that it should rest for a while.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

/// Requests that a worker must have had since the last look for its figures to mean anything.
const MIN_REQUESTS: u64 = 20;
/// Workers with meaningful figures needed to speak of peers.
const MIN_PEERS: usize = 3;
/// So many times the median of the others is an outlier.
const FACTOR: f64 = 3.0;
/// A share of failures below this is never an outlier's.
const MIN_FAILURE_RATIO: f64 = 0.1;
/// The first rest; each further one is longer by as much.
const EJECTION: Duration = Duration::from_secs(30);
/// No rest is longer than so many first ones.
const MAX_EJECTION_MULTIPLE: u32 = 10;

/// What a worker did since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Tries that ended.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
    /// Sum of the times to first byte.
    pub waited: Duration,
    /// Uncached prompt tokens of the requests whose first byte came.
    pub tokens: u64,
}

impl Window {
    fn failure_ratio(&self) -> f64 {
        self.failures as f64 / self.requests.max(1) as f64
    }

    /// Seconds to first byte per prompt token.
    fn secs_per_token(&self) -> f64 {
        self.waited.as_secs_f64() / self.tokens.max(1) as f64
    }
}

/// Why a worker rests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OutlierReason {
    /// This share of its requests failed.
    Failing(f64),
    /// Its time to first byte per prompt token, in multiples of the others' median.
    Slow(f64),
}

/// A worker that should get no requests for a while.
#[derive(Clone, Copy, Debug)]
pub struct Ejection {
    /// Its slot.
    pub slot: usize,
    /// Why.
    pub reason: OutlierReason,
    /// Until when.
    pub until: Duration,
}

/// Who rests, and how often they have.
#[derive(Clone, Debug)]
pub struct Outliers {
    /// At most this share of the fleet rests at a time; one worker always may.
    share: f64,
    ejected_until: BTreeMap<usize, Duration>,
    ejections: BTreeMap<usize, u32>,
}

impl Outliers {
    /// Nobody rests; at most `share` (0 to 1) of the fleet will.
    pub fn new(share: f64) -> Self {
        Self {
            share,
            ejected_until: BTreeMap::new(),
            ejections: BTreeMap::new(),
        }
    }

    /// Compares workers (by slot, of a fleet of `fleet`); tells who must rest from now on.
    pub fn detect(
        &mut self,
        windows: &BTreeMap<usize, Window>,
        fleet: usize,
        now: Duration,
    ) -> Vec<Ejection> {
        self.ejected_until.retain(|_, until| *until > now);
        let known: BTreeMap<usize, Window> = windows
            .iter()
            .filter(|(_, windows)| windows.requests >= MIN_REQUESTS)
            .map(|(slot, windows)| (*slot, *windows))
            .collect();
        let mut outliers: Vec<(usize, OutlierReason)> = known
            .iter()
            .filter(|(slot, _)| !self.ejected_until.contains_key(slot))
            .filter_map(|(slot, _)| Some((*slot, reason(*slot, &known)?)))
            .collect();
        outliers.sort_by(|(_, one), (_, other)| worst_first(*one, *other));
        let mut ejected = Vec::new();
        for (slot, reason) in outliers {
            if self.may_eject(fleet) {
                ejected.push(self.eject(slot, reason, now));
            }
        }
        self.forgive(&known);
        ejected
    }

    /// Who had this slot has left: nothing is held against the next one there.
    pub fn forget(&mut self, slot: usize) {
        self.ejected_until.remove(&slot);
        self.ejections.remove(&slot);
    }

    /// Whether one more may rest.
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

    /// Who did well gets one rest less counted.
    fn forgive(&mut self, known: &BTreeMap<usize, Window>) {
        let ejected_until = &self.ejected_until;
        self.ejections.retain(|slot, ejections| {
            if known.contains_key(slot) && !ejected_until.contains_key(slot) {
                *ejections -= 1;
            }
            *ejections > 0
        });
    }
}

fn reason(slot: usize, known: &BTreeMap<usize, Window>) -> Option<OutlierReason> {
    if known.len() < MIN_PEERS {
        return None;
    }
    let others = |figure: fn(&Window) -> f64| {
        let others = known.iter().filter(|(other, _)| **other != slot);
        median(others.map(|(_, windows)| figure(windows)).collect())
    };
    let own = known.get(&slot)?;
    let failure_ratio = own.failure_ratio();
    if failure_ratio >= MIN_FAILURE_RATIO && failure_ratio > FACTOR * others(Window::failure_ratio)
    {
        return Some(OutlierReason::Failing(failure_ratio));
    }
    let secs_per_token =
        own.secs_per_token() / others(Window::secs_per_token).max(f64::MIN_POSITIVE);
    (own.tokens > 0 && secs_per_token > FACTOR).then_some(OutlierReason::Slow(secs_per_token))
}

fn worst_first(one: OutlierReason, other: OutlierReason) -> Ordering {
    match (one, other) {
        (OutlierReason::Failing(one), OutlierReason::Failing(other))
        | (OutlierReason::Slow(one), OutlierReason::Slow(other)) => other.total_cmp(&one),
        (OutlierReason::Failing(_), OutlierReason::Slow(_)) => Ordering::Less,
        (OutlierReason::Slow(_), OutlierReason::Failing(_)) => Ordering::Greater,
    }
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

    fn windows(failures: u64, millis_per_request: u64) -> Window {
        Window {
            requests: 100,
            failures,
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
    fn equals_are_no_outliers() {
        for worker in [windows(0, 50), windows(30, 50), windows(100, 5000)] {
            let mut outliers = Outliers::new(0.5);
            assert!(ejected(&mut outliers, &[worker; 4], 0).is_empty());
        }
    }

    #[test]
    fn who_fails_or_crawls_while_others_do_not_rests() {
        let well = windows(1, 50);
        for ill in [windows(20, 50), windows(1, 200)] {
            let mut outliers = Outliers::new(0.2);
            assert_eq!(ejected(&mut outliers, &[well, well, ill, well], 0), [2]);
        }
    }

    #[test]
    fn only_a_share_of_the_fleet_rests_the_worst_first() {
        let (well, ill, worst_first) = (windows(0, 50), windows(30, 50), windows(60, 50));
        let workers = [
            ill,
            well,
            worst_first,
            well,
            well,
            well,
            well,
            well,
            well,
            well,
        ];
        assert_eq!(ejected(&mut Outliers::new(0.1), &workers, 0), [2]);
        assert_eq!(ejected(&mut Outliers::new(0.2), &workers, 0), [2, 0]);
        let mut outliers = Outliers::new(0.1);
        ejected(&mut outliers, &workers, 0);
        assert!(ejected(&mut outliers, &workers, 10).is_empty());
        assert_eq!(ejected(&mut outliers, &workers, 31), [2]);
    }

    #[test]
    fn rests_grow_and_good_conduct_shortens_them() {
        let (well, ill) = (windows(0, 50), windows(60, 50));
        let mut outliers = Outliers::new(0.5);
        let workers = fleet(&[ill, well, well, well]);
        assert_eq!(outliers.detect(&workers, 4, secs(0))[0].until, secs(30));
        assert_eq!(outliers.detect(&workers, 4, secs(40))[0].until, secs(100));
        let good = fleet(&[well; 4]);
        outliers.detect(&good, 4, secs(110));
        outliers.detect(&good, 4, secs(120));
        assert_eq!(outliers.detect(&workers, 4, secs(130))[0].until, secs(160));
    }

    #[test]
    fn whoever_takes_a_slot_over_begins_with_a_clean_record() {
        let (well, ill) = (windows(0, 50), windows(60, 50));
        let mut outliers = Outliers::new(0.5);
        let workers = fleet(&[ill, well, well, well]);
        outliers.detect(&workers, 4, secs(0));
        outliers.forget(0);
        assert_eq!(outliers.detect(&workers, 4, secs(1))[0].until, secs(31));
    }

    #[test]
    fn a_handful_of_requests_or_of_workers_says_nothing() {
        let (well, ill) = (windows(0, 50), windows(90, 50));
        assert!(ejected(&mut Outliers::new(0.5), &[well, ill], 0).is_empty());
        let few = Window {
            requests: 19,
            ..ill
        };
        assert!(ejected(&mut Outliers::new(0.5), &[well, well, well, few], 0).is_empty());
    }

    proptest! {
        #[test]
        fn never_more_than_the_share_rests(
            rounds in prop::collection::vec(
                prop::collection::vec((0..100_u64, 0..500_u64), 8), 1..20,
            ),
            share in 0.0..1.0_f64,
        ) {
            let mut outliers = Outliers::new(share);
            for (round, workers) in rounds.iter().enumerate() {
                let workers: Vec<_> = workers.iter().map(|&(f, ms)| windows(f, ms)).collect();
                ejected(&mut outliers, &workers, round as u64 * 10);
                prop_assert!(outliers.ejected_until.len() as f64 <= (8.0 * share).max(1.0));
            }
        }
    }
}
