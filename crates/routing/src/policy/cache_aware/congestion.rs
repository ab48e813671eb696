//! The congestion factor: the cost of a token of prefill, by how busy the fleet is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::Candidates;

/// Decisions per worker over which utilisation is averaged.
const AVERAGING_WINDOW: f64 = 4.0;
/// The largest factor.
const MAX_FACTOR: f64 = 40.0;
/// Divisor: the allowed wait grows by (factor − 1) / this.
const PATIENCE_DIVISOR: f64 = 5.0;

/// 1 / (1 − ρ), where ρ is the share of workers that prefill, averaged over decisions.
///
/// In a queue of utilisation ρ, a token of work also delays the requests that arrive behind it:
/// it causes 1 / (1 − ρ) tokens of waiting in all. Arrivals see time averages, so ρ needs no
/// clock.
#[derive(Debug, Default)]
pub struct CongestionFactor {
    /// ρ, as the bits of an `f64`.
    utilisation: AtomicU64,
}

impl CongestionFactor {
    /// The present factor, from 1 to 40.
    pub fn factor(&self) -> f64 {
        let utilisation = f64::from_bits(self.utilisation.load(Relaxed));
        1.0 / (1.0 - utilisation.min(1.0 - 1.0 / MAX_FACTOR))
    }

    /// The most that a prompt may wait at its cached prefix, in multiples of the shortest wait;
    /// from 1 to 8.8.
    ///
    /// The factor overstates the benefit of a cached prefix to the requests behind. Without this
    /// limit it would keep a popular prefix at a single worker (`bench/policies.md`).
    pub fn patience(&self) -> f64 {
        1.0 + (self.factor() - 1.0) / PATIENCE_DIVISOR
    }

    /// Adds an arrival's view of the fleet to the average. A lost race loses one sample.
    pub fn observe(&self, from: Candidates<'_>) {
        let busy = from
            .iter()
            .filter(|candidate| candidate.load.queued_tokens() > 0)
            .count();
        let count = from.count() as f64;
        self.observe_share(busy as f64 / count, count);
    }

    /// The same of a fleet that has been counted.
    pub(super) fn observe_share(&self, share: f64, count: f64) {
        let before = f64::from_bits(self.utilisation.load(Relaxed));
        let after = before + (share - before) / (AVERAGING_WINDOW * count);
        self.utilisation.store(after.to_bits(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidate::tests::fleet;

    #[test]
    fn factor_follows_utilisation_up_to_its_bound() {
        let (congestion, all) = (CongestionFactor::default(), fleet(4));
        let from = Candidates::new(&all).unwrap();
        let settle = || {
            for _ in 0..1000 {
                congestion.observe(from);
            }
            congestion.factor()
        };
        assert!((settle() - 1.0).abs() < 1e-6);
        let half = [all[0].load.lease(1), all[1].load.lease(1)];
        assert!((settle() - 2.0).abs() < 1e-6);
        let rest = [all[2].load.lease(1), all[3].load.lease(1)];
        assert!((settle() - MAX_FACTOR).abs() < 1e-6);
        assert!((congestion.patience() - 8.8).abs() < 1e-6);
        drop((half, rest));
        assert!((settle() - 1.0).abs() < 1e-6);
        assert!((congestion.patience() - 1.0).abs() < 1e-6);
    }
}
