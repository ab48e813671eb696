//! What a policy chooses from.

use std::sync::Arc;

use crate::Load;

/// A worker that may be chosen, as a policy sees it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where the worker stands in the fleet's list, in configuration order.
    pub slot: usize,
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_choose_from_is_not_a_list_of_candidates() {
        assert!(Candidates::new(&[]).is_none());
    }

    #[test]
    fn indices_wrap_around() {
        let all: Vec<_> = (0..3)
            .map(|slot| Candidate {
                slot,
                load: Arc::default(),
            })
            .collect();
        let from = Candidates::new(&all).unwrap();
        assert_eq!(from.wrapping(7).slot, 1);
        assert_eq!(from.count(), 3);
    }
}
