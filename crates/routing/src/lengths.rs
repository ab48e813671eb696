//! Recent prompt lengths, and their cut into buckets of equal work.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::{Candidate, Candidates};

/// Prompts whose lengths are remembered.
const WINDOW: usize = 4096;
/// Where the first buckets end, while nothing is known; the last is open-ended all the same.
const FIRST_CUT: u64 = 4096;

/// Who has which bucket, and what was sent where lately.
#[derive(Debug)]
pub(crate) struct Lengths {
    interval: Duration,
    /// By slot.
    seats: Vec<Seat>,
    /// The longest prompt of every bucket but the last; ascending.
    cuts: Vec<u64>,
    /// When the cuts were made.
    cut_at: Duration,
    /// The last prompts, the newest at the back.
    sent: VecDeque<Sent>,
    /// How many of them are younger than the interval, and counted in `Seat::bytes`.
    recent: usize,
    scratch: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    generation: u32,
    /// Which bucket is this worker's; `None` for who is not there.
    bucket: Option<usize>,
    /// Sent there within the interval.
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Duration,
    bytes: u64,
    slot: usize,
    generation: u32,
}

impl Lengths {
    /// Nobody, and nothing sent.
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            seats: Vec::new(),
            cuts: Vec::new(),
            cut_at: Duration::ZERO,
            sent: VecDeque::new(),
            recent: 0,
            scratch: Vec::new(),
        }
    }

    /// Everybody there is.
    pub(crate) fn members(&mut self, all: &[Candidate]) {
        for seat in &mut self.seats {
            seat.bucket = None;
        }
        self.seat(all.iter());
    }

    /// Takes note of the time, and of candidates nobody had told of.
    pub(crate) fn advance(&mut self, from: Candidates<'_>, now: Duration) {
        self.expire(now);
        let strange = |candidate: &Candidate| {
            let seat = self.seats.get(candidate.slot);
            !seat.is_some_and(|seat| {
                seat.bucket.is_some() && seat.generation == candidate.generation
            })
        };
        if from.iter().any(strange) {
            self.seat(from.iter());
        } else if now.saturating_sub(self.cut_at) >= self.interval {
            self.cut();
            self.cut_at = now;
        }
    }

    /// The buckets a prompt belongs to: more than one when its length alone fills them.
    pub(crate) fn buckets(&self, bytes: u64) -> RangeInclusive<usize> {
        let first = self.cuts.partition_point(|cut| *cut < bytes);
        let last = self.cuts.partition_point(|cut| *cut <= bytes);
        first..=last
    }

    /// How many buckets a candidate's is away from these.
    pub(crate) fn distance(&self, candidate: &Candidate, to: &RangeInclusive<usize>) -> usize {
        let bucket = self.seats.get(candidate.slot).and_then(|seat| seat.bucket);
        bucket.map_or(usize::MAX, |bucket| {
            bucket.abs_diff(bucket.clamp(*to.start(), *to.end()))
        })
    }

    /// Bytes sent to a candidate within the interval.
    pub(crate) fn recent_bytes(&self, candidate: &Candidate) -> u64 {
        self.seats.get(candidate.slot).map_or(0, |seat| seat.bytes)
    }

    /// A prompt was sent.
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
        self.seats[to.slot].bytes += bytes;
    }

    /// Gives seats to workers; then everybody seated has a bucket, in order of slots.
    fn seat<'c>(&mut self, workers: impl Iterator<Item = &'c Candidate>) {
        for worker in workers {
            if worker.slot >= self.seats.len() {
                self.seats.resize(worker.slot + 1, Seat::default());
            }
            let mut seat = self.seats[worker.slot];
            if seat.generation != worker.generation {
                seat.generation = worker.generation;
                seat.bytes = self.sent_to(worker);
            }
            seat.bucket = Some(0);
            self.seats[worker.slot] = seat;
        }
        let seated = self
            .seats
            .iter_mut()
            .filter_map(|seat| seat.bucket.as_mut());
        for (number, bucket) in seated.enumerate() {
            *bucket = number;
        }
        self.cut();
    }

    /// Bytes sent to just this worker within the interval, counted anew.
    fn sent_to(&self, worker: &Candidate) -> u64 {
        let same = |sent: &&Sent| sent.slot == worker.slot && sent.generation == worker.generation;
        let recent = self.sent.iter().rev().take(self.recent);
        recent.filter(same).map(|sent| sent.bytes).sum()
    }

    /// Cuts the remembered lengths into equal shares of bytes, one for each who has a seat.
    fn cut(&mut self) {
        let seated = self.seats.iter().filter(|seat| seat.bucket.is_some());
        let buckets = seated.count() as u64;
        self.cuts.clear();
        if (self.sent.len() as u64) < buckets {
            let cuts = (1..buckets).map(|bucket| FIRST_CUT * bucket / buckets);
            self.cuts.extend(cuts);
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
                self.cuts.push(length);
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
        let holder = &mut self.seats[sent.slot];
        if holder.generation == sent.generation {
            holder.bytes -= sent.bytes;
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

    fn cut(lengths: &[u64], workers: usize) -> Vec<u64> {
        let (all, mut known) = (fleet(workers), Lengths::new(SECOND));
        known.members(&all);
        for &length in lengths {
            known.record(&all[0], length, Duration::ZERO);
        }
        known.advance(Candidates::new(&all).unwrap(), SECOND);
        known.cuts
    }

    #[test]
    fn before_anything_is_known_the_parts_are_equal() {
        assert_eq!(cut(&[], 4), [1024, 2048, 3072]);
        assert_eq!(cut(&[], 1), []);
    }

    #[test]
    fn the_order_in_which_workers_come_does_not_matter() {
        let (all, mut known) = (fleet(4), Lengths::new(SECOND));
        for last in [3, 1, 0, 2] {
            let mut some: Vec<_> = all[last..].to_vec();
            known.members(&some);
            some.reverse();
            known.members(&all);
        }
        assert_eq!(known.cuts, [1024, 2048, 3072]);
        let seats: Vec<_> = known.seats.iter().map(|seat| seat.bucket).collect();
        assert_eq!(seats, [Some(0), Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn shares_are_of_bytes_not_of_requests() {
        assert_eq!(cut(&[10, 10, 10, 10, 10, 10, 10, 10, 80], 2), [10]);
        assert_eq!(cut(&[1, 2, 3, 4, 5, 6, 7, 8], 3), [5, 7]);
    }

    #[test]
    fn a_length_that_fills_several_buckets_belongs_to_all_of_them() {
        let (all, mut known) = (fleet(4), Lengths::new(SECOND));
        known.members(&all);
        for _ in 0..100 {
            known.record(&all[0], 700, Duration::ZERO);
        }
        known.cut();
        assert_eq!(known.buckets(700), 0..=3);
        assert_eq!((known.buckets(699), known.buckets(701)), (0..=0, 3..=3));
    }

    proptest! {
        #[test]
        fn recent_bytes_are_those_of_the_interval_whoever_comes_and_goes(
            steps in prop::collection::vec((0..3_usize, 0..5000_u64, 0..700_u64, 0..3_u32), 1..100),
        ) {
            let (mut all, mut known, mut now) = (fleet(3), Lengths::new(SECOND), Duration::ZERO);
            let mut sent = Vec::new();
            for (slot, bytes, pause, generation) in steps {
                now += Duration::from_millis(pause);
                all[slot].generation = generation;
                known.members(&all);
                known.advance(Candidates::new(&all).unwrap(), now);
                known.record(&all[slot], bytes, now);
                sent.push((now, bytes, slot, all[slot].generation));
                for worker in &all {
                    let counts = |(at, _, slot, generation): &&(Duration, u64, usize, u32)| {
                        now.saturating_sub(*at) <= SECOND && (*slot, *generation) == (worker.slot, worker.generation)
                    };
                    let expected: u64 = sent.iter().filter(counts).map(|(_, bytes, ..)| bytes).sum();
                    prop_assert_eq!(known.recent_bytes(worker), expected);
                }
            }
        }
    }
}
