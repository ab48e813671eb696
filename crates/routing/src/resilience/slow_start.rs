//! Slow start: a worker that has come back gets its share of requests step by step.

use std::time::Duration;

use crate::{Candidate, SeededRng};

/// What a worker gets of its share at the very start.
const LEAST: f64 = 0.1;

/// The share, up to 1, of its usual chance that a worker has so long after its return.
pub fn ramp(since_return: Duration, period: Duration) -> f64 {
    if since_return >= period {
        return 1.0;
    }
    (since_return.as_secs_f64() / period.as_secs_f64()).max(LEAST)
}

/// Leaves out of `candidates`, by chance, those that are still cold. `warmth` tells each one's;
/// when all would be left out, all stay.
pub fn thin_out(
    candidates: &mut Vec<Candidate>,
    rng: &mut SeededRng,
    ramp: impl Fn(&Candidate) -> f64,
) {
    let stays: Vec<bool> = candidates
        .iter()
        .map(|candidate| rng.fraction() < ramp(candidate))
        .collect();
    if stays.contains(&true) {
        let mut stays = stays.into_iter();
        candidates.retain(|_| stays.next().unwrap_or(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidate::tests::fleet;

    #[test]
    fn warmth_grows_to_one() {
        let percent = |secs| {
            let ramp = ramp(Duration::from_secs(secs), Duration::from_secs(10));
            (ramp * 100.0).round().to_string()
        };
        assert_eq!([0, 5, 10, 99].map(percent), ["10", "50", "100", "100"]);
    }

    #[test]
    fn without_a_period_everybody_is_warm() {
        assert!(ramp(Duration::ZERO, Duration::ZERO) >= 1.0);
    }

    #[test]
    fn a_cold_worker_is_a_candidate_as_often_as_it_is_warm() {
        let mut with_cold = 0;
        for seed in 0..10_000 {
            let mut candidates = fleet(4);
            let mut rng = SeededRng::new(seed);
            thin_out(&mut candidates, &mut rng, |candidate| {
                if candidate.slot == 2 { 0.25 } else { 1.0 }
            });
            assert!(candidates.len() >= 3);
            with_cold += usize::from(candidates.len() == 4);
        }
        assert!((2300..2700).contains(&with_cold), "{with_cold}");
    }

    #[test]
    fn when_all_are_cold_somebody_still_works() {
        for seed in 0..1000 {
            let mut candidates = fleet(2);
            let mut rng = SeededRng::new(seed);
            thin_out(&mut candidates, &mut rng, |_| LEAST);
            assert!(!candidates.is_empty());
        }
    }
}
