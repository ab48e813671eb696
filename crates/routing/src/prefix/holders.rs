//! The set of workers that have a node's blocks: small sets inline, large ones as bits.

/// A worker's number within the index.
pub(super) type Seat = u16;

/// Seats kept inline.
const FEW: usize = 6;
/// What an allocation costs besides its bytes.
const OVERHEAD: usize = 16;

#[derive(Clone, Debug)]
pub(super) enum Holders {
    Few { count: u8, seats: [Seat; FEW] },
    Many(Box<[u64]>),
}

impl Default for Holders {
    fn default() -> Self {
        Self::Few {
            count: 0,
            seats: [0; FEW],
        }
    }
}

impl Holders {
    pub(super) fn contains(&self, seat: Seat) -> bool {
        match self {
            Self::Few { count, seats } => seats[..usize::from(*count)].contains(&seat),
            Self::Many(words) => words
                .get(usize::from(seat / 64))
                .is_some_and(|word| word >> (seat % 64) & 1 == 1),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few { count, .. } => *count == 0,
            Self::Many(words) => words.iter().all(|word| *word == 0),
        }
    }

    pub(super) fn insert(&mut self, seat: Seat) {
        if self.contains(seat) {
            return;
        }
        match self {
            Self::Few { count, seats } if usize::from(*count) < FEW => {
                seats[usize::from(*count)] = seat;
                *count += 1;
            }
            Self::Few { seats, .. } => {
                let highest = seats.iter().copied().fold(seat, Seat::max);
                let mut words = vec![0; usize::from(highest / 64) + 1].into_boxed_slice();
                for seat in seats.iter().copied().chain([seat]) {
                    words[usize::from(seat / 64)] |= 1 << (seat % 64);
                }
                *self = Self::Many(words);
            }
            Self::Many(words) => {
                let at = usize::from(seat / 64);
                if at >= words.len() {
                    let mut longer = vec![0; at + 1].into_boxed_slice();
                    longer[..words.len()].copy_from_slice(words);
                    *words = longer;
                }
                words[at] |= 1 << (seat % 64);
            }
        }
    }

    pub(super) fn remove(&mut self, seat: Seat) {
        match self {
            Self::Few { count, seats } => {
                let held = usize::from(*count);
                if let Some(at) = seats[..held].iter().position(|known| *known == seat) {
                    seats[at] = seats[held - 1];
                    *count -= 1;
                }
            }
            Self::Many(words) => {
                if let Some(word) = words.get_mut(usize::from(seat / 64)) {
                    *word &= !(1 << (seat % 64));
                }
            }
        }
    }

    /// Calls `visit` for every holder that is not in `seen`, and adds it there.
    pub(super) fn visit_new(&self, seen: &mut Seen, mut visit: impl FnMut(Seat)) {
        match self {
            Self::Few { count, seats } => {
                for &seat in &seats[..usize::from(*count)] {
                    if seen.add(usize::from(seat / 64), 1 << (seat % 64)) != 0 {
                        visit(seat);
                    }
                }
            }
            Self::Many(words) => {
                for (at, &word) in words.iter().enumerate() {
                    let mut new = seen.add(at, word);
                    while new != 0 {
                        visit(at as Seat * 64 + new.trailing_zeros() as Seat);
                        new &= new - 1;
                    }
                }
            }
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Few { .. } => 0,
            Self::Many(words) => words.len() * 8 + OVERHEAD,
        }
    }
}

/// Seats already visited.
#[derive(Debug, Default)]
pub(super) struct Seen {
    words: Vec<u64>,
}

impl Seen {
    /// Adds bits to a word; tells which of them are new.
    fn add(&mut self, at: usize, bits: u64) -> u64 {
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let new = bits & !self.words[at];
        self.words[at] |= bits;
        new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holders_are_a_set(steps in prop::collection::vec((any::<bool>(), 0..300_u16), 0..60)) {
            let (mut holders, mut model) = (Holders::default(), BTreeSet::new());
            for (insert, seat) in steps {
                if insert {
                    holders.insert(seat);
                    model.insert(seat);
                } else {
                    holders.remove(seat);
                    model.remove(&seat);
                }
                prop_assert_eq!(holders.contains(seat), model.contains(&seat));
                prop_assert_eq!(holders.is_empty(), model.is_empty());
                let mut listed = BTreeSet::new();
                holders.visit_new(&mut Seen::default(), |seat| assert!(listed.insert(seat)));
                prop_assert_eq!(&listed, &model);
            }
        }
    }
}
