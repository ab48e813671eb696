//! A worker's own time: how far its cache has moved on.

use super::node::Stamp;

/// Counts the blocks that a worker's cache had to take in, and so tells what it still holds.
///
/// A cache of `holds` blocks that evicts the least recently used one has lost a block when as
/// many others were used since. Blocks it did not have count fully. One it had counts for
/// those only that were used after it, a share of age / `holds`: exact on average, and kept
/// in one number per worker and one stamp per node and holder, where a true list of every
/// worker's blocks would take several times the memory. Stamps wrap after 2³² blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    now: Stamp,
    /// Blocks that the worker's cache holds; [`UNKNOWN`](Self::UNKNOWN) when it does not tell.
    holds: u32,
    /// What is left over for the next block that `now` counts, in shares of `holds`.
    rest: u32,
}

impl Clock {
    /// The size of a cache nobody knows: it is believed to hold everything.
    pub(super) const UNKNOWN: u32 = u32::MAX;

    /// The clock of a worker that has seen nothing.
    pub(super) fn new(holds: u32) -> Self {
        Self {
            now: 0,
            holds: holds.max(1),
            rest: 0,
        }
    }

    /// What a stamp given now is.
    pub(super) fn now(&self) -> Stamp {
        self.now
    }

    /// From now on the cache holds so many blocks.
    pub(super) fn set_holds(&mut self, holds: u32) {
        self.holds = holds.max(1);
        self.rest = self.rest.min(self.holds - 1);
    }

    /// How many leading blocks of a prompt are still cached, if its blocks from `start` to
    /// `end` were last used at `stamp`; 0 when none of these is. The last of a prompt's
    /// blocks goes first.
    pub(super) fn depth(&self, stamp: Stamp, start: u32, end: u32) -> u32 {
        if self.holds == Self::UNKNOWN {
            return end;
        }
        let left = self.holds.saturating_sub(self.age(stamp));
        if left > start { left.min(end) } else { 0 }
    }

    /// Lets time pass for a use of these blocks.
    pub(super) fn advance(&mut self, used: Used) {
        let shares = u64::from(self.rest) + used.moved;
        let whole = shares / u64::from(self.holds);
        self.rest = (shares % u64::from(self.holds)) as u32;
        self.now = self.now.wrapping_add(used.new).wrapping_add(whole as u32);
    }

    fn age(&self, stamp: Stamp) -> u32 {
        self.now.wrapping_sub(stamp)
    }
}

/// The blocks of a prompt, as far as a cache moves on when they are used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Those it did not have.
    new: u32,
    /// Those it had, times their ages.
    moved: u64,
}

impl Used {
    /// Adds the blocks from `start` to `end`, last used at `stamp` if ever.
    pub(super) fn add(&mut self, clock: &Clock, stamp: Option<Stamp>, (start, end): (u32, u32)) {
        let depth = stamp.map_or(0, |stamp| clock.depth(stamp, start, end));
        let had = depth.saturating_sub(start);
        self.new += end - start - had;
        let age = stamp.map_or(0, |stamp| clock.age(stamp));
        self.moved += u64::from(had) * u64::from(age);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(clock: &Clock, stamp: Option<Stamp>, blocks: u32) -> Used {
        let mut used = Used::default();
        used.add(clock, stamp, (0, blocks));
        used
    }

    #[test]
    fn the_end_of_a_prompt_is_lost_first() {
        let mut clock = Clock::new(100);
        clock.advance(used(&clock, None, 60));
        let stamp = clock.now();
        assert_eq!(clock.depth(stamp, 0, 60), 60);
        clock.advance(used(&clock, None, 70));
        assert_eq!(clock.depth(stamp, 0, 60), 30);
        assert_eq!(
            (clock.depth(stamp, 30, 60), clock.depth(stamp, 29, 60)),
            (0, 30)
        );
        clock.advance(used(&clock, None, 30));
        assert_eq!(clock.depth(stamp, 0, 60), 0);
    }

    #[test]
    fn what_is_used_again_moves_the_rest_by_its_age() {
        let mut clock = Clock::new(100);
        clock.advance(used(&clock, None, 10));
        let stamp = clock.now();
        clock.advance(used(&clock, Some(stamp), 10));
        assert_eq!(clock.now(), stamp, "the newest moves nobody");
        clock.advance(used(&clock, None, 50));
        clock.advance(used(&clock, Some(stamp), 10));
        assert_eq!(
            clock.now(),
            stamp + 50 + 5,
            "half of the cache stood before it"
        );
    }

    #[test]
    fn a_cache_of_unknown_size_loses_nothing() {
        let mut clock = Clock::new(Clock::UNKNOWN);
        let stamp = clock.now();
        for _ in 0..10 {
            clock.advance(used(&clock, None, 1 << 28));
        }
        assert_eq!(clock.depth(stamp, 5, 9), 9);
    }
}
