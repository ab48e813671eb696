//! The clock of one worker: an estimate of the blocks that its cache has evicted.

use super::ids::{BlockRange, Stamp, is_before};

/// Half of all stamps: an age above it looks like a time to come.
const HALF: u32 = u32::MAX / 2;

/// Counts the blocks that entered a worker's cache, and estimates from that which remain.
///
/// A cache of `capacity` blocks that evicts the least recently used one has lost a block when
/// `capacity` others were used since. A block that was not cached advances the clock by one. A
/// block that was cached passes only the blocks used after it, so it advances the clock by the
/// share age / `capacity`, which is exact on average. This needs one number per worker and one
/// stamp per node and holder; a true list of each worker's blocks needs several times the
/// memory. Stamps wrap after 2³² blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    now: Stamp,
    /// Blocks that the worker's cache holds; [`UNKNOWN`](Self::UNKNOWN) if not reported.
    capacity: u32,
    /// The fraction of the next tick of `now`, in units of 1 / `capacity`.
    remainder: u32,
    /// What was last used before is gone, whatever the capacity.
    floor: Stamp,
}

impl Clock {
    /// The capacity of a cache whose size is unknown: it is assumed to evict nothing.
    pub(super) const UNKNOWN: u32 = u32::MAX;

    /// The clock of a worker with an empty cache of `capacity` blocks.
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            now: 0,
            capacity: capacity.max(1),
            remainder: 0,
            floor: 0,
        }
    }

    /// The stamp of a use at this moment.
    pub(super) fn now(&self) -> Stamp {
        self.now
    }

    /// Changes the number of blocks that the cache holds.
    pub(super) fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity.max(1);
        self.remainder = self.remainder.min(self.capacity - 1);
    }

    /// What was last used before `floor` is gone.
    pub(super) fn forget_before(&mut self, floor: Stamp) {
        if is_before(self.floor, floor) {
            self.floor = floor;
        }
    }

    /// The leading blocks of a prompt that are still cached, if those of `range` were last used
    /// at `stamp`; 0 when none of `range` is. The last block of a prompt is evicted first.
    pub(super) fn cached_depth(&self, stamp: Stamp, range: BlockRange) -> u32 {
        if is_before(stamp, self.floor) {
            return 0;
        }
        if self.capacity == Self::UNKNOWN {
            return range.end;
        }
        let left = self.capacity.saturating_sub(self.age(stamp));
        if left > range.start {
            left.min(range.end)
        } else {
            0
        }
    }

    /// Advances by the effect that a use of these blocks has on the cache, and by a block at least,
    /// so that later uses have later stamps.
    pub(super) fn advance(&mut self, used: Used) {
        let shares = u64::from(self.remainder) + used.reused_age;
        let whole = shares / u64::from(self.capacity);
        self.remainder = (shares % u64::from(self.capacity)) as u32;
        let passed = used.new.wrapping_add(whole as u32).max(1);
        self.now = self.now.wrapping_add(passed);
        if self.age(self.floor) > HALF {
            self.floor = self.now.wrapping_sub(HALF);
        }
    }

    fn age(&self, stamp: Stamp) -> u32 {
        self.now.wrapping_sub(stamp)
    }
}

/// The blocks of a prompt, summed up by their effect on a worker's cache.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Blocks that were not cached.
    new: u32,
    /// The ages of the blocks that were cached, summed.
    reused_age: u64,
    /// The last use of the deepest of those.
    pub(super) last_use: Option<Stamp>,
}

impl Used {
    /// Adds the blocks of `range`; `stamp` is their last use, if there was one.
    pub(super) fn add(&mut self, clock: &Clock, stamp: Option<Stamp>, range: BlockRange) {
        let depth = stamp.map_or(0, |stamp| clock.cached_depth(stamp, range));
        let cached = depth.saturating_sub(range.start);
        self.new += range.end - range.start - cached;
        let age = stamp.map_or(0, |stamp| clock.age(stamp));
        if depth > 0 {
            self.last_use = stamp;
        }
        self.reused_age += u64::from(cached) * u64::from(age);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(clock: &Clock, stamp: Option<Stamp>, blocks: u32) -> Used {
        let mut used = Used::default();
        used.add(clock, stamp, range(0, blocks));
        used
    }

    fn range(start: u32, end: u32) -> BlockRange {
        BlockRange { start, end }
    }

    #[test]
    fn full_cache_evicts_end_of_prompt_first() {
        let mut clock = Clock::new(100);
        clock.advance(used(&clock, None, 60));
        let stamp = clock.now();
        assert_eq!(clock.cached_depth(stamp, range(0, 60)), 60);
        clock.advance(used(&clock, None, 70));
        assert_eq!(clock.cached_depth(stamp, range(0, 60)), 30);
        assert_eq!(
            (
                clock.cached_depth(stamp, range(30, 60)),
                clock.cached_depth(stamp, range(29, 60))
            ),
            (0, 30)
        );
        clock.advance(used(&clock, None, 30));
        assert_eq!(clock.cached_depth(stamp, range(0, 60)), 0);
    }

    #[test]
    fn reused_blocks_advance_clock_by_their_age() {
        let mut clock = Clock::new(100);
        clock.advance(used(&clock, None, 10));
        let stamp = clock.now();
        clock.advance(used(&clock, Some(stamp), 10));
        assert_eq!(clock.now(), stamp + 1, "the newest blocks have age 0");
        clock.advance(used(&clock, None, 50));
        clock.advance(used(&clock, Some(stamp), 10));
        assert_eq!(
            clock.now(),
            stamp + 1 + 50 + 5,
            "half of the cache was used after them"
        );
    }

    #[test]
    fn cache_of_unknown_size_evicts_nothing() {
        let mut clock = Clock::new(Clock::UNKNOWN);
        let stamp = clock.now();
        for _ in 0..7 {
            clock.advance(used(&clock, None, 1 << 28));
        }
        assert_eq!(clock.cached_depth(stamp, range(5, 9)), 9);
    }

    #[test]
    fn what_was_used_before_the_floor_is_gone() {
        for capacity in [1000, Clock::UNKNOWN] {
            let mut clock = Clock::new(capacity);
            clock.advance(used(&clock, None, 10));
            let before = clock.now();
            clock.advance(used(&clock, None, 10));
            clock.forget_before(before + 1);
            clock.forget_before(before);
            assert_eq!(clock.cached_depth(before, range(0, 5)), 0);
            assert_eq!(clock.cached_depth(clock.now(), range(0, 5)), 5);
        }
    }

    #[test]
    fn floor_follows_a_clock_that_wraps() {
        let mut clock = Clock::new(Clock::UNKNOWN);
        for _ in 0..20 {
            clock.advance(used(&clock, None, 1 << 29));
            let stamp = clock.now();
            assert_eq!(clock.cached_depth(stamp, range(0, 5)), 5);
        }
    }
}
