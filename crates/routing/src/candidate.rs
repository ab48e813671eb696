//! What a policy chooses from.

use std::sync::Arc;

use crate::{Load, SeededRng};

/// A worker as policies know it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where the worker stands in the fleet's list: in configuration order, and the lowest
    /// free place for one that comes later.
    pub slot: usize,
    /// Tells apart the workers that held a slot one after another: a worker that came later,
    /// restarted or was flushed has a higher one, and nothing learnt of the old holds.
    pub generation: u32,
    /// Base URL: what hash rings and sticky keys go by.
    pub url: Arc<str>,
    /// What is in flight there, as counted by this gateway.
    pub load: Arc<Load>,
}

/// The workers a policy may choose from: healthy, not yet tried, and never empty.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    first: &'a Candidate,
    all: &'a [Candidate],
}

impl<'a> Candidates<'a> {
    /// `None` when there is nothing to choose from.
    pub fn new(all: &'a [Candidate]) -> Option<Self> {
        all.first().map(|first| Self { first, all })
    }

    /// The candidate at `index`, counted round and round the list.
    pub fn wrapping(self, index: usize) -> &'a Candidate {
        self.all
            .get(index % self.all.len().max(1))
            .unwrap_or(self.first)
    }

    /// The candidate in a slot of the fleet, if it is one.
    pub fn in_slot(self, slot: usize) -> Option<&'a Candidate> {
        let in_place = self.all.get(slot).filter(|found| found.slot == slot);
        in_place.or_else(|| {
            let search = self
                .all
                .binary_search_by_key(&slot, |candidate| candidate.slot);
            self.all.get(search.ok()?)
        })
    }

    /// How many there are; at least one.
    pub fn count(self) -> usize {
        self.all.len()
    }

    /// What each would have in flight, on average, with one more request among them.
    pub(crate) fn mean_requests_with_next(self) -> f64 {
        let requests = |candidate: &Candidate| candidate.load.requests();
        let total: usize = self.iter().map(requests).sum();
        (total + 1) as f64 / self.count() as f64
    }

    /// All of them, by ascending slot.
    pub fn iter(self) -> impl Iterator<Item = &'a Candidate> {
        self.all.iter()
    }

    /// The candidate of lowest cost, ties by chance; costs must be comparable, so never NaN.
    pub fn cheapest<C: PartialOrd>(
        self,
        rng: &mut SeededRng,
        mut cost: impl FnMut(&Candidate) -> C,
    ) -> &'a Candidate {
        let (mut best, mut lowest, mut ties) = (self.first, cost(self.first), 1);
        for candidate in self.iter().skip(1) {
            let cost = cost(candidate);
            if cost < lowest {
                (best, lowest, ties) = (candidate, cost, 1);
            } else if cost <= lowest {
                ties += 1;
                // Each of n equals is kept with chance 1/n (reservoir sampling).
                if rng.index(ties) == 0 {
                    best = candidate;
                }
            }
        }
        best
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn fleet(size: usize) -> Vec<Candidate> {
        let candidate = |slot| Candidate {
            slot,
            generation: 0,
            url: format!("http://worker-{slot}:80").into(),
            load: Arc::default(),
        };
        (0..size).map(candidate).collect()
    }

    #[test]
    fn nothing_to_choose_from_is_not_a_list_of_candidates() {
        assert!(Candidates::new(&[]).is_none());
    }

    #[test]
    fn indices_wrap_around() {
        let all = fleet(3);
        let from = Candidates::new(&all).unwrap();
        assert_eq!(from.wrapping(7).slot, 1);
        assert_eq!(from.count(), 3);
    }

    #[test]
    fn a_slot_is_found_whoever_is_missing() {
        let mut all = fleet(9);
        all.retain(|candidate| ![0, 3, 4].contains(&candidate.slot));
        let from = Candidates::new(&all).unwrap();
        for slot in 0..12 {
            let found = from.in_slot(slot).map(|candidate| candidate.slot);
            let there = slot < 9 && ![0, 3, 4].contains(&slot);
            assert_eq!(found, there.then_some(slot));
        }
    }

    #[test]
    fn equals_share_by_chance_and_the_cheapest_wins() {
        let all = fleet(4);
        let from = Candidates::new(&all).unwrap();
        let cost = |candidate: &Candidate| if candidate.slot == 2 { 1.0 } else { 0.0 };
        let mut counts = [0; 4];
        for seed in 0..3000 {
            let mut rng = SeededRng::new(seed);
            counts[from.cheapest(&mut rng, cost).slot] += 1;
        }
        assert_eq!(counts[2], 0);
        assert!(
            counts
                .iter()
                .enumerate()
                .all(|(slot, &n)| slot == 2 || n > 900),
            "{counts:?}"
        );
    }
}
