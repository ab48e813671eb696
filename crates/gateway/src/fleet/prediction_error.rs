//! How far predictions of cached tokens are off at a worker.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What a reply weighs after the next one, so that about the last twenty count.
const MEMORY: f32 = 0.95;

/// The error of the last predictions, as a share of what was predicted or reported.
#[derive(Debug, Default)]
pub(crate) struct PredictionError {
    /// Bits of an `f32` each. Of two replies at the same moment one may be lost.
    difference: AtomicU32,
    larger: AtomicU32,
}

impl PredictionError {
    /// So many cached tokens were predicted for a request, and so many reported.
    pub(crate) fn record(&self, predicted: u64, reported: u64) {
        add(&self.difference, predicted.abs_diff(reported));
        add(&self.larger, predicted.max(reported));
    }

    /// The share, from 0 to 1; `None` while neither predictions nor reports named any.
    pub(crate) fn share(&self) -> Option<f64> {
        let larger = read(&self.larger);
        (larger > 0.0).then(|| f64::from(read(&self.difference) / larger))
    }
}

fn read(bits: &AtomicU32) -> f32 {
    f32::from_bits(bits.load(Relaxed))
}

fn add(sum: &AtomicU32, tokens: u64) {
    sum.store((MEMORY * read(sum) + tokens as f32).to_bits(), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_the_share_that_was_wrong_lately() {
        let error = PredictionError::default();
        assert_eq!(error.share(), None);
        error.record(0, 0);
        assert_eq!(error.share(), None);
        for _ in 0..200 {
            error.record(1000, 0);
        }
        assert!(error.share() > Some(0.999));
        for _ in 0..200 {
            error.record(750, 1000);
        }
        let share = error.share().unwrap();
        assert!((share - 0.25).abs() < 0.001, "{share}");
    }
}
