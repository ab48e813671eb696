//! Slow start: a worker that has come back gets its share of requests gradually.

use std::time::Duration;

use crate::{Candidate, SeededRng};

/// The part of its share that a worker gets at the start.
const MIN_RAMP: f64 = 0.1;

/// The part, up to 1, of its usual share that a worker gets `since_return` after its return.
pub fn ramp(since_return: Duration, period: Duration) -> f64 {
    if since_return >= period {
        return 1.0;
    }
    (since_return.as_secs_f64() / period.as_secs_f64()).max(MIN_RAMP)
}

/// Keeps each candidate with the probability `ramp`, so that workers in slow start are left out
/// now and then. If none would be kept, all are.
pub fn thin_out(
    candidates: &mut Vec<Candidate>,
    rng: &mut SeededRng,
    ramp: impl Fn(&Candidate) -> f64,
) {
    let kept: Vec<bool> = candidates
        .iter()
        .map(|candidate| rng.fraction() < ramp(candidate))
        .collect();
    if kept.contains(&true) {
        let mut kept = kept.into_iter();
        candidates.retain(|_| kept.next().unwrap_or(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidate::tests::fleet;

    #[test]
    fn ramp_grows_linearly_to_one() {
        let percent = |secs| {
            let ramp = ramp(Duration::from_secs(secs), Duration::from_secs(10));
            (ramp * 100.0).round().to_string()
        };
        assert_eq!([0, 5, 10, 99].map(percent), ["10", "50", "100", "100"]);
    }

    #[test]
    fn zero_period_gives_full_share() {
        assert!(ramp(Duration::ZERO, Duration::ZERO) >= 1.0);
    }

    #[test]
    fn ramping_worker_is_kept_with_probability_of_its_ramp() {
        let mut with_ramping = 0;
        for seed in 0..10_000 {
            let mut candidates = fleet(4);
            let mut rng = SeededRng::new(seed);
            thin_out(&mut candidates, &mut rng, |candidate| {
                if candidate.slot == 2 { 0.25 } else { 1.0 }
            });
            assert!(candidates.len() >= 3);
            with_ramping += usize::from(candidates.len() == 4);
        }
        assert!((2300..2700).contains(&with_ramping), "{with_ramping}");
    }

    #[test]
    fn all_candidates_stay_if_none_would_be_kept() {
        for seed in 0..1000 {
            let mut candidates = fleet(2);
            let mut rng = SeededRng::new(seed);
            thin_out(&mut candidates, &mut rng, |_| MIN_RAMP);
            assert!(!candidates.is_empty());
        }
    }
}
