//! What a token of prefill costs beyond its own time, by how busy the fleet is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::Candidates;

/// Decisions over which utilisation is averaged, per worker.
const MEMORY: f64 = 4.0;
/// Work is charged at most so many times over.
const MOST: f64 = 40.0;
/// Part of the factor beyond 1 that a prompt's own wait may grow by, as a divisor.
const PATIENCE: f64 = 5.0;

/// 1 / (1 − ρ), where ρ is the share of workers that prefill, averaged over decisions.
///
/// Whoever arrives while a worker is busy waits for its work, too: in a queue of utilisation
/// ρ, work is waited for 1 / (1 − ρ) times in all. Arrivals see time averages, so ρ needs no
/// clock.
#[derive(Debug, Default)]
pub struct CongestionFactor {
    /// ρ, as bits of an `f64`.
    busy: AtomicU64,
}

impl CongestionFactor {
    /// The factor at present, from 1 to 40.
    pub fn factor(&self) -> f64 {
        let busy = f64::from_bits(self.busy.load(Relaxed));
        1.0 / (1.0 - busy.min(1.0 - 1.0 / MOST))
    }

    /// How many times the shortest wait a prompt may wait where its prefix is, from 1 to 8.8.
    ///
    /// What a prompt saves others is worth less to those behind it than the factor says: it
    /// would alone keep a prefix that everybody asks for at one worker (`bench/policies.md`).
    pub fn patience(&self) -> f64 {
        1.0 + (self.factor() - 1.0) / PATIENCE
    }

    /// Takes an arrival's view of the fleet into the average. A lost race loses one sample.
    pub fn observe(&self, from: Candidates<'_>) {
        let busy = from
            .iter()
            .filter(|candidate| candidate.load.queued_tokens() > 0)
            .count();
        let (share, count) = (busy as f64 / from.count() as f64, from.count() as f64);
        let before = f64::from_bits(self.busy.load(Relaxed));
        let after = before + (share - before) / (MEMORY * count);
        self.busy.store(after.to_bits(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidate::tests::fleet;

    #[test]
    fn the_factor_follows_the_load_and_is_bounded() {
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
        assert!((settle() - MOST).abs() < 1e-6);
        assert!((congestion.patience() - 8.8).abs() < 1e-6);
        drop((half, rest));
        assert!((settle() - 1.0).abs() < 1e-6);
        assert!((congestion.patience() - 1.0).abs() < 1e-6);
    }
}
