//! The workers of a pool that came back a short while ago, and the others.

use routing::Candidate;

/// A pool's selectable workers by whether they are in slow start; both empty when none is. Most
/// requests choose among the others, which need not be picked out for each of them.
#[derive(Debug, Default)]
pub(super) struct SlowStart {
    /// By ascending slot.
    pub(super) warming_up: Vec<Candidate>,
    /// By ascending slot.
    pub(super) settled: Vec<Candidate>,
}

impl SlowStart {
    /// Of selectable workers, where those in these slots are in slow start; all ascending.
    pub(super) fn new(selectable: &[Candidate], slots: &[usize]) -> Self {
        let is_warming_up = |it: &Candidate| slots.binary_search(&it.slot).is_ok();
        if !selectable.iter().any(is_warming_up) {
            return Self::default();
        }
        let all = selectable.iter().cloned();
        let (warming_up, settled) = all.partition(is_warming_up);
        Self {
            warming_up,
            settled,
        }
    }

    /// The settled workers, with some of those in slow start, by ascending slot.
    pub(super) fn with(&self, chosen: Vec<Candidate>) -> Vec<Candidate> {
        let mut all = chosen;
        all.extend_from_slice(&self.settled);
        all.sort_unstable_by_key(|it| it.slot);
        all
    }
}
