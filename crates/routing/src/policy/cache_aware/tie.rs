//! What decides between workers of nearly equal cost.

use crate::policy::TieBreak;
use crate::prefix::prompt_hash;
use crate::{Candidates, Request, rendezvous};

/// Decides between equal workers.
#[derive(Clone, Copy, Debug)]
pub(super) struct TieBreaker(pub(super) TieBreak);

impl TieBreaker {
    /// What costs of equal workers differ by at most, where `resolution` is what is not known of them.
    pub(super) fn margin(self, resolution: f64) -> f64 {
        match self.0 {
            TieBreak::Rendezvous => resolution,
            TieBreak::Random => 0.0,
        }
    }

    /// The key by which one of the equal workers is chosen, for a prompt with these blocks, of which
    /// some worker holds the first `known`; `None` if chance chooses.
    ///
    /// It is the first block that no worker holds: that distinguishes a conversation from others
    /// that begin alike, and stays the same while it goes on. Another gateway that knows the same
    /// common beginning has the same key.
    pub(super) fn key(self, request: &Request<'_>, blocks: &[u64], known: usize) -> Option<u64> {
        match (self.0, blocks) {
            // Too short for the index: equal prompts go to one worker, other things equal.
            (_, []) => prompt_hash(&request.prompt),
            (TieBreak::Rendezvous, [first, ..]) => {
                let new = blocks.get(known).or(blocks.last());
                new.map(|new| new ^ first.rotate_left(17))
            }
            (TieBreak::Random, _) => None,
        }
    }
}

/// Candidates whose costs were near the lowest when they were read, with these: few, unless most are
/// alike.
#[derive(Debug, Default)]
pub(super) struct Near {
    places: Vec<(usize, f64)>,
    /// The first of lowest cost.
    cheapest: usize,
    /// The highest cost that is equal to the lowest.
    highest: f64,
}

impl Near {
    /// Reads the costs of all candidates, of which those that differ by no more than `margin` are
    /// equal. One comparison for each candidate that costs more.
    pub(super) fn collect(&mut self, costs: impl Iterator<Item = f64>, margin: f64) {
        let (mut lowest, mut highest) = (f64::INFINITY, f64::INFINITY);
        self.places.clear();
        self.cheapest = 0;
        for (at, cost) in costs.enumerate() {
            if cost > highest {
                continue;
            }
            if cost + margin < lowest {
                self.places.clear();
            }
            if cost < lowest {
                (lowest, highest) = (cost, cost + margin);
                self.cheapest = at;
            }
            self.places.push((at, cost));
        }
        self.highest = highest;
    }

    /// The place of the heaviest for a key of those that are equal to the cheapest, and as near: no
    /// request leaves its zone for a tie.
    pub(super) fn heaviest(&self, from: Candidates<'_>, key: u64) -> usize {
        if self.places.len() < 2 {
            return self.cheapest;
        }
        let crossing = from.at(self.cheapest).crossing_tokens;
        let (mut best, mut most) = (self.cheapest, 0);
        for (at, _) in self.places.iter().filter(|(_, cost)| *cost <= self.highest) {
            let candidate = from.at(*at);
            let weight = rendezvous::weight(key, candidate);
            if weight >= most && candidate.crossing_tokens == crossing {
                (best, most) = (*at, weight);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Prompt;

    const RENDEZVOUS: TieBreaker = TieBreaker(TieBreak::Rendezvous);

    #[test]
    fn key_of_a_conversation_stays_while_it_grows_and_differs_from_that_of_others() {
        let request = Request::default();
        let key = |blocks: &[u64]| RENDEZVOUS.key(&request, blocks, 2);
        let (one, other) = ([1, 2, 3], [1, 2, 7, 8]);
        assert_eq!(key(&one), key(&[1, 2, 3, 4, 5]));
        assert_ne!(key(&one), key(&other));
        assert_ne!(key(&one), RENDEZVOUS.key(&request, &one, 0));
        // All of it is known.
        assert_eq!(RENDEZVOUS.key(&request, &one, 3), key(&one));
    }

    #[test]
    fn short_prompt_is_its_own_key_and_without_one_chance_decides() {
        let request = |text, seed| Request {
            prompt: Prompt::text([text, b"", b""]),
            seed,
            ..Request::default()
        };
        let key = |text, seed| RENDEZVOUS.key(&request(text, seed), &[], 0);
        assert_eq!(key(b"hi", 1), key(b"hi", 2));
        assert_ne!(key(b"hi", 1), key(b"ho", 1));
        assert_eq!(key(b"", 1), None);
        let random = TieBreaker(TieBreak::Random);
        assert_eq!(random.key(&request(b"ho", 1), &[1], 0), None);
        assert!((RENDEZVOUS.margin(200.0) - 200.0).abs() < 1e-9);
        assert!(random.margin(200.0).abs() < 1e-9);
    }
}
