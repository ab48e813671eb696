//! Slow start: a worker that is new or has come back gets its share of requests gradually.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

/// The part of its share that a worker gets at the start.
const MIN_RAMP: f64 = 0.25;
/// A request, as turns are counted.
const TURN: i64 = 1 << 20;
/// The most turns a worker saves up while a policy chooses others.
const MAX_SAVED: i64 = 4 * TURN;

/// The part, up to 1, of its usual share that a worker gets `since_return` after its return.
pub fn ramp(since_return: Duration, period: Duration) -> f64 {
    if since_return >= period {
        return 1.0;
    }
    (since_return.as_secs_f64() / period.as_secs_f64()).max(MIN_RAMP)
}

/// The turns of a worker in slow start. It is a candidate whenever it has one, so it gets its
/// first request at once and the others in turn, not by chance.
#[derive(Debug)]
pub struct Turns(AtomicI64);

impl Default for Turns {
    /// One turn: for the first request.
    fn default() -> Self {
        Self(AtomicI64::new(TURN))
    }
}

impl Turns {
    /// Whether the worker is a candidate for a request, of so many candidates. Every request
    /// earns it `ramp` of the share of one among them.
    pub fn earn(&self, ramp: f64, candidates: usize) -> bool {
        let share = ramp * TURN as f64 / candidates.max(1) as f64;
        let saved = self.0.fetch_add(share as i64, Relaxed);
        if saved > MAX_SAVED {
            self.0.store(MAX_SAVED, Relaxed);
        }
        saved >= TURN
    }

    /// The worker got a request.
    pub fn spend(&self) {
        self.0.fetch_sub(TURN, Relaxed);
    }

    /// A slow start begins.
    pub fn reset(&self) {
        self.0.store(TURN, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRng;

    #[test]
    fn ramp_grows_linearly_to_one() {
        let percent = |secs| {
            let ramp = ramp(Duration::from_secs(secs), Duration::from_secs(10));
            (ramp * 100.0).round().to_string()
        };
        assert_eq!([0, 5, 10, 99].map(percent), ["25", "50", "100", "100"]);
    }

    #[test]
    fn zero_period_gives_full_share() {
        assert!(ramp(Duration::ZERO, Duration::ZERO) >= 1.0);
    }

    /// Requests of 10 000 that a worker gets, of 4 candidates, when a policy takes it with this
    /// chance whenever it may.
    fn requests(ramp: f64, chance: f64) -> usize {
        let (turns, mut rng, mut got) = (Turns::default(), SeededRng::new(1), 0);
        for _ in 0..10_000 {
            if turns.earn(ramp, 4) && rng.fraction() < chance {
                turns.spend();
                got += 1;
            }
        }
        got
    }

    #[test]
    fn worker_gets_the_ramped_share_however_the_policy_chooses() {
        assert!((620..=630).contains(&requests(0.25, 1.0)));
        assert!((600..=630).contains(&requests(0.25, 0.25)));
        assert!((1240..=1255).contains(&requests(0.5, 1.0)));
    }

    #[test]
    fn first_request_comes_at_once_and_the_next_in_turn() {
        let turns = Turns::default();
        assert!(turns.earn(MIN_RAMP, 2));
        turns.spend();
        let waits = (1..100).find(|_| turns.earn(MIN_RAMP, 2));
        assert_eq!(waits, Some(8), "a quarter of every second request");
    }

    #[test]
    fn turns_are_saved_up_to_a_bound_only() {
        let turns = Turns::default();
        for _ in 0..10_000 {
            turns.earn(1.0, 1);
        }
        let mut burst = 0;
        while turns.earn(0.0, 1) {
            turns.spend();
            burst += 1;
        }
        assert!(burst <= 5, "{burst}");
        turns.reset();
        turns.spend();
        assert!(!turns.earn(0.0, 1));
    }
}
