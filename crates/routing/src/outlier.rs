//! Which worker does so much worse than its peers that it should rest for a while.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

/// Requests that a worker must have had since the last look for its figures to mean anything.
const LEAST_REQUESTS: u64 = 20;
/// Workers with meaningful figures needed to speak of peers.
const LEAST_PEERS: usize = 3;
/// So many times the median of the others is an outlier.
const FACTOR: f64 = 3.0;
/// A share of failures below this is never an outlier's.
const LEAST_FAILING: f64 = 0.1;
/// The first rest; each further one is longer by as much.
const REST: Duration = Duration::from_secs(30);
/// No rest is longer than so many first ones.
const MOST_RESTS: u32 = 10;

/// What a worker did since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Tries that ended.
    pub requests: u64,
    /// Those that failed.
    pub failures: u64,
    /// Sum of the times to first byte.
    pub waited: Duration,
    /// Uncached prompt tokens of the requests whose first byte came.
    pub tokens: u64,
}

impl Figures {
    fn failing(&self) -> f64 {
        self.failures as f64 / self.requests.max(1) as f64
    }

    /// Seconds to first byte per prompt token.
    fn slowness(&self) -> f64 {
        self.waited.as_secs_f64() / self.tokens.max(1) as f64
    }
}

/// Why a worker rests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Misfit {
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
    pub misfit: Misfit,
    /// Until when.
    pub until: Duration,
}

/// Who rests, and how often they have.
#[derive(Clone, Debug)]
pub struct Outliers {
    /// At most this share of the fleet rests at a time; one worker always may.
    share: f64,
    resting: BTreeMap<usize, Duration>,
    rests: BTreeMap<usize, u32>,
}

impl Outliers {
    /// Nobody rests; at most `share` (0 to 1) of the fleet will.
    pub fn new(share: f64) -> Self {
        Self {
            share,
            resting: BTreeMap::new(),
            rests: BTreeMap::new(),
        }
    }

    /// Compares workers (by slot, of a fleet of `fleet`); tells who must rest from now on.
    pub fn judge(
        &mut self,
        figures: &BTreeMap<usize, Figures>,
        fleet: usize,
        now: Duration,
    ) -> Vec<Ejection> {
        self.resting.retain(|_, until| *until > now);
        let known: BTreeMap<usize, Figures> = figures
            .iter()
            .filter(|(_, figures)| figures.requests >= LEAST_REQUESTS)
            .map(|(slot, figures)| (*slot, *figures))
            .collect();
        let mut misfits: Vec<(usize, Misfit)> = known
            .iter()
            .filter(|(slot, _)| !self.resting.contains_key(slot))
            .filter_map(|(slot, _)| Some((*slot, misfit(*slot, &known)?)))
            .collect();
        misfits.sort_by(|(_, one), (_, other)| worse(*one, *other));
        let mut ejected = Vec::new();
        for (slot, misfit) in misfits {
            if self.may_rest(fleet) {
                ejected.push(self.eject(slot, misfit, now));
            }
        }
        self.forgive(&known);
        ejected
    }

    /// Who had this slot has left: nothing is held against the next one there.
    pub fn forget(&mut self, slot: usize) {
        self.resting.remove(&slot);
        self.rests.remove(&slot);
    }

    /// Whether one more may rest.
    fn may_rest(&self, fleet: usize) -> bool {
        let with_one_more = (self.resting.len() + 1) as f64;
        self.resting.is_empty() || with_one_more <= fleet as f64 * self.share
    }

    fn eject(&mut self, slot: usize, misfit: Misfit, now: Duration) -> Ejection {
        let rests = self.rests.entry(slot).or_default();
        *rests = (*rests + 1).min(MOST_RESTS);
        let until = now + REST * *rests;
        self.resting.insert(slot, until);
        Ejection {
            slot,
            misfit,
            until,
        }
    }

    /// Who did well gets one rest less counted.
    fn forgive(&mut self, known: &BTreeMap<usize, Figures>) {
        let resting = &self.resting;
        self.rests.retain(|slot, rests| {
            if known.contains_key(slot) && !resting.contains_key(slot) {
                *rests -= 1;
            }
            *rests > 0
        });
    }
}

fn misfit(slot: usize, known: &BTreeMap<usize, Figures>) -> Option<Misfit> {
    if known.len() < LEAST_PEERS {
        return None;
    }
    let others = |figure: fn(&Figures) -> f64| {
        let others = known.iter().filter(|(other, _)| **other != slot);
        median(others.map(|(_, figures)| figure(figures)).collect())
    };
    let own = known.get(&slot)?;
    let failing = own.failing();
    if failing >= LEAST_FAILING && failing > FACTOR * others(Figures::failing) {
        return Some(Misfit::Failing(failing));
    }
    let slowness = own.slowness() / others(Figures::slowness).max(f64::MIN_POSITIVE);
    (own.tokens > 0 && slowness > FACTOR).then_some(Misfit::Slow(slowness))
}

fn worse(one: Misfit, other: Misfit) -> Ordering {
    match (one, other) {
        (Misfit::Failing(one), Misfit::Failing(other))
        | (Misfit::Slow(one), Misfit::Slow(other)) => other.total_cmp(&one),
        (Misfit::Failing(_), Misfit::Slow(_)) => Ordering::Less,
        (Misfit::Slow(_), Misfit::Failing(_)) => Ordering::Greater,
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

    fn figures(failures: u64, millis_per_request: u64) -> Figures {
        Figures {
            requests: 100,
            failures,
            waited: Duration::from_millis(100 * millis_per_request),
            tokens: 10_000,
        }
    }

    fn fleet(workers: &[Figures]) -> BTreeMap<usize, Figures> {
        workers.iter().copied().enumerate().collect()
    }

    fn ejected(outliers: &mut Outliers, workers: &[Figures], now: u64) -> Vec<usize> {
        let ejections = outliers.judge(&fleet(workers), workers.len(), secs(now));
        ejections.iter().map(|ejection| ejection.slot).collect()
    }

    #[test]
    fn equals_are_no_outliers() {
        for worker in [figures(0, 50), figures(30, 50), figures(100, 5000)] {
            let mut outliers = Outliers::new(0.5);
            assert!(ejected(&mut outliers, &[worker; 4], 0).is_empty());
        }
    }

    #[test]
    fn who_fails_or_crawls_while_others_do_not_rests() {
        let well = figures(1, 50);
        for ill in [figures(20, 50), figures(1, 200)] {
            let mut outliers = Outliers::new(0.2);
            assert_eq!(ejected(&mut outliers, &[well, well, ill, well], 0), [2]);
        }
    }

    #[test]
    fn only_a_share_of_the_fleet_rests_the_worst_first() {
        let (well, ill, worse) = (figures(0, 50), figures(30, 50), figures(60, 50));
        let workers = [ill, well, worse, well, well, well, well, well, well, well];
        assert_eq!(ejected(&mut Outliers::new(0.1), &workers, 0), [2]);
        assert_eq!(ejected(&mut Outliers::new(0.2), &workers, 0), [2, 0]);
        let mut outliers = Outliers::new(0.1);
        ejected(&mut outliers, &workers, 0);
        assert!(ejected(&mut outliers, &workers, 10).is_empty());
        assert_eq!(ejected(&mut outliers, &workers, 31), [2]);
    }

    #[test]
    fn rests_grow_and_good_conduct_shortens_them() {
        let (well, ill) = (figures(0, 50), figures(60, 50));
        let mut outliers = Outliers::new(0.5);
        let workers = fleet(&[ill, well, well, well]);
        assert_eq!(outliers.judge(&workers, 4, secs(0))[0].until, secs(30));
        assert_eq!(outliers.judge(&workers, 4, secs(40))[0].until, secs(100));
        let good = fleet(&[well; 4]);
        outliers.judge(&good, 4, secs(110));
        outliers.judge(&good, 4, secs(120));
        assert_eq!(outliers.judge(&workers, 4, secs(130))[0].until, secs(160));
    }

    #[test]
    fn whoever_takes_a_slot_over_begins_with_a_clean_record() {
        let (well, ill) = (figures(0, 50), figures(60, 50));
        let mut outliers = Outliers::new(0.5);
        let workers = fleet(&[ill, well, well, well]);
        outliers.judge(&workers, 4, secs(0));
        outliers.forget(0);
        assert_eq!(outliers.judge(&workers, 4, secs(1))[0].until, secs(31));
    }

    #[test]
    fn a_handful_of_requests_or_of_workers_says_nothing() {
        let (well, ill) = (figures(0, 50), figures(90, 50));
        assert!(ejected(&mut Outliers::new(0.5), &[well, ill], 0).is_empty());
        let few = Figures {
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
                let workers: Vec<_> = workers.iter().map(|&(f, ms)| figures(f, ms)).collect();
                ejected(&mut outliers, &workers, round as u64 * 10);
                prop_assert!(outliers.resting.len() as f64 <= (8.0 * share).max(1.0));
            }
        }
    }
}
