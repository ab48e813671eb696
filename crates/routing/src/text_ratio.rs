//! How many bytes of a prompt's text make a token, learnt from what engines report.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Bytes of text per token, in hundredths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRatio(u32);

impl TextRatio {
    /// The usual estimate for English and code: 4 bytes.
    pub const USUAL: Self = Self(400);

    /// Tokens of so many bytes, rounded up.
    pub fn to_tokens(self, bytes: u64) -> u64 {
        bytes.saturating_mul(100).div_ceil(u64::from(self.0))
    }

    /// Bytes of so many tokens.
    pub fn to_bytes(self, tokens: u64) -> u64 {
        tokens.saturating_mul(u64::from(self.0)) / 100
    }
}

impl Default for TextRatio {
    fn default() -> Self {
        Self::USUAL
    }
}

/// Samples before they count: the first few say little.
const FEWEST_SAMPLES: u32 = 16;
/// The mean is that of about so many samples.
const WINDOW: u32 = 20;
/// The finest step of the mean, per byte.
const STEPS: u32 = 10_000;

/// The mean ratio of the prompts of one model, weighted towards the last ones.
#[derive(Debug, Default)]
pub struct LearntRatio {
    samples: AtomicU32,
    /// In [`STEPS`]. Of two samples at the same moment one may be lost.
    mean: AtomicU32,
}

impl LearntRatio {
    /// An engine has counted so many tokens in so many bytes of text.
    pub fn observe(&self, bytes: u64, tokens: u64) {
        if bytes == 0 || tokens == 0 {
            return;
        }
        let ratio = bytes.saturating_mul(u64::from(STEPS)) / tokens;
        let ratio = ratio.clamp(u64::from(STEPS), u64::from(16 * STEPS));
        let samples = self.samples.fetch_add(1, Relaxed).saturating_add(1);
        let (mean, weight) = (
            u64::from(self.mean.load(Relaxed)),
            u64::from(samples.min(WINDOW)),
        );
        let mean = (mean * (weight - 1) + ratio) / weight;
        self.mean
            .store(u32::try_from(mean).unwrap_or(u32::MAX), Relaxed);
    }

    /// The mean; the usual ratio until enough is known.
    pub fn get(&self) -> TextRatio {
        if self.samples.load(Relaxed) < FEWEST_SAMPLES {
            return TextRatio::USUAL;
        }
        TextRatio(self.mean.load(Relaxed).max(STEPS) / (STEPS / 100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_ratio_holds_until_enough_is_known() {
        let learnt = LearntRatio::default();
        for _ in 1..FEWEST_SAMPLES {
            learnt.observe(3000, 1000);
        }
        assert_eq!(learnt.get(), TextRatio::USUAL);
        learnt.observe(3000, 1000);
        assert_eq!(learnt.get(), TextRatio(300));
    }

    #[test]
    fn mean_follows_a_change_and_absurd_samples_move_it_little() {
        let learnt = LearntRatio::default();
        for _ in 0..100 {
            learnt.observe(3000, 1000);
        }
        learnt.observe(u64::MAX, 1);
        learnt.observe(1, u64::MAX);
        learnt.observe(0, 7);
        learnt.observe(7, 0);
        assert!((250..370).contains(&learnt.get().0), "{learnt:?}");
        for _ in 0..200 {
            learnt.observe(2000, 1000);
        }
        assert!((199..203).contains(&learnt.get().0), "{learnt:?}");
    }

    #[test]
    fn tokens_are_rounded_up_and_bytes_invert_them() {
        assert_eq!(TextRatio::USUAL.to_tokens(5), 2);
        assert_eq!(TextRatio(300).to_tokens(5), 2);
        assert_eq!(TextRatio(300).to_bytes(2), 6);
        assert_eq!(TextRatio::USUAL.to_tokens(0), 0);
        assert_eq!(TextRatio::USUAL.to_tokens(u64::MAX), u64::MAX.div_ceil(400));
    }
}
