//! The rooms in which the two engines of a pair meet.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Low bits of a room, which count: no two live pairs of this gateway share a room.
const COUNTED: u32 = 33;
/// High bits, which are random: other gateways draw from the same rooms.
const RANDOM: u64 = 1 << (63 - COUNTED);

/// Rooms from 1 to 2^63 - 1, a fresh one for each prompt of each attempt. Two live requests in one
/// room would get each other's cache.
#[derive(Debug)]
pub(in crate::proxy) struct Rooms {
    next: AtomicU64,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(fastrand::u64(..)),
        }
    }
}

impl Rooms {
    /// The first of as many rooms in a row as there are prompts: engines count on from it.
    pub(in crate::proxy) fn reserve(&self, prompts: usize) -> u64 {
        let (prompts, end) = (prompts as u64, 1 << COUNTED);
        loop {
            let first = self.next.fetch_add(prompts, Relaxed) % end;
            // The others must not run into the random bits.
            if first + prompts <= end {
                return (fastrand::u64(1..RANDOM) << COUNTED) | first;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rooms_are_positive_distinct_and_in_a_row_for_a_batch() {
        let rooms = Rooms {
            next: AtomicU64::new((1 << COUNTED) - 5),
        };
        let mut seen = BTreeSet::new();
        for prompts in [1, 3, 1, 7, 2, 1] {
            let first = rooms.reserve(prompts);
            for room in first..first + prompts as u64 {
                assert!((1..1 << 63).contains(&room));
                assert!(seen.insert(room % (1 << COUNTED)), "{room}");
            }
        }
    }
}
