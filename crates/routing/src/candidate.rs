//! The workers that a policy chooses from.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::{Load, SeededRng};

/// The hash by which a worker is known to all gateways.
pub fn hash_url(url: &str) -> u64 {
    xxh3_64(url.as_bytes())
}

/// A worker as policies see it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The worker's index in the fleet: in configuration order, and the lowest free index for a
    /// worker that joins later.
    pub slot: usize,
    /// Distinguishes the successive workers of a slot. A worker that joined later, restarted or
    /// was flushed has a higher generation, and state of an earlier one does not apply to it.
    pub generation: u32,
    /// Base URL; hash rings and sticky keys identify the worker by it.
    pub url: Arc<str>,
    /// [`hash_url`] of it.
    pub url_hash: u64,
    /// The requests in flight there, as counted by this gateway.
    pub load: Arc<Load>,
    /// What a request costs more there because the worker is in another zone, in tokens of prefill;
    /// 0 in the own zone.
    pub crossing_tokens: u64,
}

impl Candidate {
    /// A worker of the own zone without requests.
    pub fn idle(slot: usize, generation: u32, url: impl Into<Arc<str>>) -> Self {
        let url = url.into();
        Self {
            slot,
            generation,
            url_hash: hash_url(&url),
            url,
            load: Arc::default(),
            crossing_tokens: 0,
        }
    }
}

/// The workers that a policy may choose from, at least one, by ascending slot: those that take
/// requests, or, when there are none, those kept as a fallback.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    first: &'a Candidate,
    all: &'a [Candidate],
}

impl<'a> Candidates<'a> {
    /// `None` for an empty list.
    pub fn new(all: &'a [Candidate]) -> Option<Self> {
        all.first().map(|first| Self { first, all })
    }

    /// The candidate at `index`, modulo the length of the list.
    pub fn wrapping(self, index: usize) -> &'a Candidate {
        self.at(index % self.all.len().max(1))
    }

    /// The candidate at `index`; the first if there is none.
    pub(crate) fn at(self, index: usize) -> &'a Candidate {
        self.all.get(index).unwrap_or(self.first)
    }

    /// The candidate in a slot of the fleet.
    pub fn in_slot(self, slot: usize) -> Option<&'a Candidate> {
        // With no worker missing, slot and index are equal.
        let at_index = self.all.get(slot).filter(|found| found.slot == slot);
        at_index.or_else(|| {
            let search = self
                .all
                .binary_search_by_key(&slot, |candidate| candidate.slot);
            self.all.get(search.ok()?)
        })
    }

    /// The number of candidates; at least one.
    pub fn count(self) -> usize {
        self.all.len()
    }

    /// The mean number of requests in flight, with the next request included.
    pub(crate) fn mean_requests_with_next(self) -> f64 {
        let requests = |candidate: &Candidate| candidate.load.requests();
        let total: usize = self.iter().map(requests).sum();
        (total + 1) as f64 / self.count() as f64
    }

    /// All of them, by ascending slot.
    pub fn iter(self) -> impl Iterator<Item = &'a Candidate> {
        self.all.iter()
    }

    /// The candidate of lowest cost, ties at random. Costs must be comparable, so never NaN. They are
    /// asked for once each, in order.
    pub fn cheapest<C: PartialOrd>(
        self,
        rng: &mut SeededRng,
        cost: impl FnMut(&Candidate) -> C,
    ) -> &'a Candidate {
        self.wrapping(cheapest(self.iter(), rng, cost))
    }
}

/// The place of the one of lowest cost, ties at random; 0 if there is none.
pub(crate) fn cheapest<T, C: PartialOrd>(
    all: impl Iterator<Item = T>,
    rng: &mut SeededRng,
    mut cost: impl FnMut(T) -> C,
) -> usize {
    let mut all = all.map(&mut cost).enumerate();
    let Some((mut best, mut lowest)) = all.next() else {
        return 0;
    };
    let mut ties = 1;
    for (at, cost) in all {
        if cost < lowest {
            (best, lowest, ties) = (at, cost, 1);
        } else if cost <= lowest {
            ties += 1;
            // Each of n equal ones is kept with probability 1/n (reservoir sampling).
            if rng.index(ties) == 0 {
                best = at;
            }
        }
    }
    best
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn fleet(size: usize) -> Vec<Candidate> {
        let candidate = |slot| Candidate::idle(slot, 0, format!("http://worker-{slot}:80"));
        (0..size).map(candidate).collect()
    }

    #[test]
    fn empty_list_gives_no_candidates() {
        assert!(Candidates::new(&[]).is_none());
    }

    #[test]
    fn index_beyond_the_end_wraps_around() {
        let all = fleet(3);
        let from = Candidates::new(&all).unwrap();
        assert_eq!(from.wrapping(7).slot, 1);
        assert_eq!(from.count(), 3);
    }

    #[test]
    fn slot_is_found_while_others_are_missing() {
        let mut all = fleet(9);
        all.retain(|candidate| ![0, 3, 4].contains(&candidate.slot));
        let from = Candidates::new(&all).unwrap();
        for slot in 0..12 {
            let found = from.in_slot(slot).map(|candidate| candidate.slot);
            let is_present = slot < 9 && ![0, 3, 4].contains(&slot);
            assert_eq!(found, is_present.then_some(slot));
        }
    }

    #[test]
    fn cheapest_wins_and_ties_are_random() {
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
