//! Recent prompt lengths, and the boundaries that split them into buckets of equal work.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::{Candidate, Candidates};

/// Prompts whose lengths are remembered.
const WINDOW: usize = 4096;
/// The range that the initial boundaries divide, in bytes, while no lengths are known. The last
/// bucket is open-ended all the same.
const INITIAL_RANGE: u64 = 4096;

/// The bucket of each worker, and the bytes recently sent to it.
#[derive(Debug)]
pub(crate) struct BucketBoundaries {
    interval: Duration,
    /// By slot of the fleet.
    assignments: Vec<Assignment>,
    /// The longest prompt of every bucket but the last, in bytes; ascending.
    bounds: Vec<u64>,
    /// When the bounds were last recalculated.
    computed_at: Duration,
    /// The latest prompts, the newest at the back.
    sent: VecDeque<Sent>,
    /// The number of them within the interval; they count in `Assignment::bytes`.
    recent: usize,
    /// Sorted lengths; reused, so that a recalculation allocates nothing.
    scratch: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Assignment {
    generation: u32,
    /// The number of the worker's bucket; `None` if the worker is no member.
    bucket: Option<usize>,
    /// Bytes sent to the worker within the interval.
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Duration,
    bytes: u64,
    slot: usize,
    generation: u32,
}

impl BucketBoundaries {
    /// No workers, and no prompts.
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            assignments: Vec::new(),
            bounds: Vec::new(),
            computed_at: Duration::ZERO,
            sent: VecDeque::new(),
            recent: 0,
            scratch: Vec::new(),
        }
    }

    /// Sets the interval between recalculations, from the next one on.
    pub(crate) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Replaces the list of workers.
    pub(crate) fn set_members(&mut self, all: &[Candidate]) {
        for assignment in &mut self.assignments {
            assignment.bucket = None;
        }
        self.assign(all.iter());
    }

    /// Advances to `now`: old prompts expire, new candidates get a bucket, and after each
    /// interval the bounds are recalculated.
    pub(crate) fn advance(&mut self, from: Candidates<'_>, now: Duration) {
        self.expire(now);
        let unknown = |candidate: &Candidate| {
            let assignment = self.assignments.get(candidate.slot);
            !assignment.is_some_and(|assignment| {
                assignment.bucket.is_some() && assignment.generation == candidate.generation
            })
        };
        if from.iter().any(unknown) {
            self.assign(from.iter());
        } else if now.saturating_sub(self.computed_at) >= self.interval {
            self.recompute();
            self.computed_at = now;
        }
    }

    /// The buckets that a prompt belongs to: several if prompts of its length fill them.
    pub(crate) fn buckets(&self, bytes: u64) -> RangeInclusive<usize> {
        let first = self.bounds.partition_point(|bound| *bound < bytes);
        let last = self.bounds.partition_point(|bound| *bound <= bytes);
        first..=last
    }

    /// The distance of a candidate's bucket from a range of buckets.
    pub(crate) fn distance(&self, candidate: &Candidate, buckets: &RangeInclusive<usize>) -> usize {
        let bucket = self
            .assignments
            .get(candidate.slot)
            .and_then(|assignment| assignment.bucket);
        bucket.map_or(usize::MAX, |bucket| {
            bucket.abs_diff(bucket.clamp(*buckets.start(), *buckets.end()))
        })
    }

    /// Bytes sent to a candidate within the interval.
    pub(crate) fn recent_bytes(&self, candidate: &Candidate) -> u64 {
        self.assignments
            .get(candidate.slot)
            .map_or(0, |assignment| assignment.bytes)
    }

    /// Records that a prompt is sent.
    pub(crate) fn record(&mut self, to: &Candidate, bytes: u64, now: Duration) {
        if self.sent.len() == WINDOW {
            if self.recent == WINDOW {
                self.expire_oldest();
            }
            self.sent.pop_front();
        }
        let sent = Sent {
            at: now,
            bytes,
            slot: to.slot,
            generation: to.generation,
        };
        self.sent.push_back(sent);
        self.recent += 1;
        self.assignments[to.slot].bytes += bytes;
    }

    /// Adds workers as members, then numbers the buckets of all members in order of slots.
    fn assign<'c>(&mut self, workers: impl Iterator<Item = &'c Candidate>) {
        for worker in workers {
            if worker.slot >= self.assignments.len() {
                self.assignments
                    .resize(worker.slot + 1, Assignment::default());
            }
            let mut assignment = self.assignments[worker.slot];
            if assignment.generation != worker.generation {
                assignment.generation = worker.generation;
                assignment.bytes = self.sent_to(worker);
            }
            assignment.bucket = Some(0);
            self.assignments[worker.slot] = assignment;
        }
        let assigned = self
            .assignments
            .iter_mut()
            .filter_map(|assignment| assignment.bucket.as_mut());
        for (number, bucket) in assigned.enumerate() {
            *bucket = number;
        }
        self.recompute();
    }

    /// Bytes sent to this generation of a worker within the interval, recounted.
    fn sent_to(&self, worker: &Candidate) -> u64 {
        let same = |sent: &&Sent| sent.slot == worker.slot && sent.generation == worker.generation;
        let recent = self.sent.iter().rev().take(self.recent);
        recent.filter(same).map(|sent| sent.bytes).sum()
    }

    /// Sets the bounds so that the known lengths fall into equal shares of bytes, one per member.
    fn recompute(&mut self) {
        let assigned = self
            .assignments
            .iter()
            .filter(|assignment| assignment.bucket.is_some());
        let buckets = assigned.count() as u64;
        self.bounds.clear();
        if (self.sent.len() as u64) < buckets {
            let bounds = (1..buckets).map(|bucket| INITIAL_RANGE * bucket / buckets);
            self.bounds.extend(bounds);
            return;
        }
        self.scratch.clear();
        self.scratch.extend(self.sent.iter().map(|sent| sent.bytes));
        self.scratch.sort_unstable();
        let total: u64 = self.scratch.iter().sum();
        let (mut sum, mut bucket) = (0, 1);
        for &length in &self.scratch {
            sum += length;
            while bucket < buckets && sum * buckets >= total * bucket {
                self.bounds.push(length);
                bucket += 1;
            }
        }
    }

    fn expire(&mut self, now: Duration) {
        while let Some(oldest) = self.sent.len().checked_sub(self.recent)
            && let Some(sent) = self.sent.get(oldest)
            && now.saturating_sub(sent.at) > self.interval
        {
            self.expire_oldest();
        }
    }

    fn expire_oldest(&mut self) {
        let Some(sent) = self.sent.get(self.sent.len() - self.recent) else {
            return;
        };
        let assignment = &mut self.assignments[sent.slot];
        if assignment.generation == sent.generation {
            assignment.bytes -= sent.bytes;
        }
        self.recent -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::candidate::tests::fleet;

    const SECOND: Duration = Duration::from_secs(1);

    fn bounds_after(lengths: &[u64], workers: usize) -> Vec<u64> {
        let (all, mut boundaries) = (fleet(workers), BucketBoundaries::new(SECOND));
        boundaries.set_members(&all);
        for &length in lengths {
            boundaries.record(&all[0], length, Duration::ZERO);
        }
        boundaries.advance(Candidates::new(&all).unwrap(), SECOND);
        boundaries.bounds
    }

    #[test]
    fn initial_bounds_are_equal_parts() {
        assert_eq!(bounds_after(&[], 4), [1024, 2048, 3072]);
        assert!(bounds_after(&[], 1).is_empty());
    }

    #[test]
    fn bounds_do_not_depend_on_order_of_arrival() {
        let (all, mut boundaries) = (fleet(4), BucketBoundaries::new(SECOND));
        for last in [3, 1, 0, 2] {
            let mut some: Vec<_> = all[last..].to_vec();
            boundaries.set_members(&some);
            some.reverse();
            boundaries.set_members(&all);
        }
        assert_eq!(boundaries.bounds, [1024, 2048, 3072]);
        let assignments: Vec<_> = boundaries
            .assignments
            .iter()
            .map(|assignment| assignment.bucket)
            .collect();
        assert_eq!(assignments, [Some(0), Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn bounds_give_equal_shares_of_bytes_not_of_requests() {
        assert_eq!(bounds_after(&[10, 10, 10, 10, 10, 10, 10, 10, 80], 2), [10]);
        assert_eq!(bounds_after(&[1, 2, 3, 4, 5, 6, 7, 8], 3), [5, 7]);
    }

    #[test]
    fn length_that_fills_several_buckets_belongs_to_all_of_them() {
        let (all, mut boundaries) = (fleet(4), BucketBoundaries::new(SECOND));
        boundaries.set_members(&all);
        for _ in 0..100 {
            boundaries.record(&all[0], 700, Duration::ZERO);
        }
        boundaries.recompute();
        assert_eq!(boundaries.buckets(700), 0..=3);
        assert_eq!(
            (boundaries.buckets(699), boundaries.buckets(701)),
            (0..=0, 3..=3)
        );
    }

    proptest! {
        #[test]
        fn recent_bytes_match_recount_through_restarts(
            steps in prop::collection::vec((0..3_usize, 0..5000_u64, 0..700_u64, 0..3_u32), 1..100),
        ) {
            let (mut all, mut boundaries, mut now) = (fleet(3), BucketBoundaries::new(SECOND), Duration::ZERO);
            let mut sent = Vec::new();
            for (slot, bytes, pause, generation) in steps {
                now += Duration::from_millis(pause);
                all[slot].generation = generation;
                boundaries.set_members(&all);
                boundaries.advance(Candidates::new(&all).unwrap(), now);
                boundaries.record(&all[slot], bytes, now);
                sent.push((now, bytes, slot, all[slot].generation));
                for worker in &all {
                    let counts = |(at, _, slot, generation): &&(Duration, u64, usize, u32)| {
                        now.saturating_sub(*at) <= SECOND && (*slot, *generation) == (worker.slot, worker.generation)
                    };
                    let expected: u64 = sent.iter().filter(counts).map(|(_, bytes, ..)| bytes).sum();
                    prop_assert_eq!(boundaries.recent_bytes(worker), expected);
                }
            }
        }
    }
}
