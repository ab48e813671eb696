//! What a policy chooses from.

use std::sync::Arc;

use crate::{Draw, Load};

/// A worker as policies know it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where the worker stands in the fleet's list, in configuration order. Dense, and used
    /// again when a worker is replaced.
    pub slot: usize,
    /// Tells apart the workers that held a slot one after another: a worker that was
    /// replaced, restarted or flushed has a new one, and nothing learnt of the old holds.
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

    /// How many there are; at least one.
    pub fn count(self) -> usize {
        self.all.len()
    }

    /// All of them, in configuration order.
    pub fn iter(self) -> impl Iterator<Item = &'a Candidate> {
        self.all.iter()
    }

    /// The candidate of lowest cost, ties by chance; costs are finite or infinite, never NaN.
    pub fn cheapest(
        self,
        draw: &mut Draw,
        mut cost: impl FnMut(&Candidate) -> f64,
    ) -> &'a Candidate {
        let (mut best, mut lowest, mut ties) = (self.first, f64::INFINITY, 0);
        for candidate in self.iter() {
            let cost = cost(candidate);
            if cost < lowest {
                (best, lowest, ties) = (candidate, cost, 1);
            } else if cost <= lowest {
                ties += 1;
                // Each of n equals is kept with chance 1/n (reservoir sampling).
                if draw.index(ties) == 0 {
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
    use crate::Request;

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
    fn equals_share_by_chance_and_the_cheapest_wins() {
        let all = fleet(4);
        let from = Candidates::new(&all).unwrap();
        let cost = |candidate: &Candidate| if candidate.slot == 2 { 1.0 } else { 0.0 };
        let mut counts = [0; 4];
        for chance in 0..3000 {
            let mut draw = Request {
                chance,
                ..Request::default()
            }
            .draw();
            counts[from.cheapest(&mut draw, cost).slot] += 1;
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
