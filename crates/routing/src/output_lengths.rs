//! How long outputs are, learnt from the replies of a model.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Keys whose outputs are remembered apart; further ones take the place of others.
const KEYS: usize = 1024;
/// The mean is that of about so many replies.
const WINDOW: u64 = 64;
/// Replies of a key before they count for it.
const FEWEST_SAMPLES: u64 = 4;
/// The finest step of a mean, per token.
const STEPS: u64 = 16;

/// Mean output of a model's replies, and of those to each [output key](crate::Request::output_key), weighted towards the
/// last ones.
#[derive(Debug)]
pub struct OutputLengths {
    all: Mean,
    keys: Box<[KeyMean]>,
}

/// A mean and the number of its samples, in one word. Of two samples at the same moment one may be
/// lost.
#[derive(Debug, Default)]
struct Mean(AtomicU64);

#[derive(Debug, Default)]
struct KeyMean {
    /// Hash of the key that it is of.
    key: AtomicU32,
    mean: Mean,
}

impl Default for OutputLengths {
    fn default() -> Self {
        Self {
            all: Mean::default(),
            keys: (0..KEYS).map(|_| KeyMean::default()).collect(),
        }
    }
}

impl OutputLengths {
    /// A reply had so many tokens.
    pub fn observe(&self, key: Option<u64>, tokens: u64) {
        self.all.observe(tokens);
        if let Some((entry, hash)) = self.entry(key) {
            if entry.key.swap(hash, Relaxed) != hash {
                entry.mean.0.store(0, Relaxed);
            }
            entry.mean.observe(tokens);
        }
    }

    /// Tokens that a reply will probably have; at most `longest`, if the request says that.
    pub fn expected(&self, key: Option<u64>, longest: Option<u64>) -> u64 {
        let of_key = self.entry(key).and_then(|(entry, hash)| {
            let known = entry.key.load(Relaxed) == hash;
            known.then(|| entry.mean.get(FEWEST_SAMPLES)).flatten()
        });
        let mean = of_key.or_else(|| self.all.get(1)).unwrap_or(0);
        mean.min(longest.unwrap_or(u64::MAX))
    }

    fn entry(&self, key: Option<u64>) -> Option<(&KeyMean, u32)> {
        let hash = key?;
        let entry = self.keys.get(hash as usize % KEYS)?;
        Some((entry, ((hash >> 32) as u32).max(1)))
    }
}

impl Mean {
    fn observe(&self, tokens: u64) {
        let (samples, mean) = self.parts();
        let tokens = tokens.min(u64::from(u32::MAX) / STEPS) * STEPS;
        let weight = (samples + 1).min(WINDOW);
        let mean = (mean * (weight - 1) + tokens) / weight;
        self.0.store(weight << 32 | mean, Relaxed);
    }

    fn get(&self, fewest: u64) -> Option<u64> {
        let (samples, mean) = self.parts();
        (samples >= fewest).then_some(mean / STEPS)
    }

    fn parts(&self) -> (u64, u64) {
        let word = self.0.load(Relaxed);
        (word >> 32, word & u64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_with_few_replies_is_expected_to_be_as_all_are() {
        let lengths = OutputLengths::default();
        assert_eq!(lengths.expected(Some(7), None), 0);
        for _ in 0..3 {
            lengths.observe(Some(7), 1000);
            lengths.observe(None, 100);
        }
        assert_eq!(
            lengths.expected(Some(7), None),
            lengths.expected(None, None)
        );
        lengths.observe(Some(7), 1000);
        assert_eq!(lengths.expected(Some(7), None), 1000);
        assert!((400..700).contains(&lengths.expected(Some(8), None)));
    }

    #[test]
    fn expectation_is_bounded_by_the_request() {
        let lengths = OutputLengths::default();
        lengths.observe(None, 500);
        assert_eq!(lengths.expected(None, Some(64)), 64);
        assert_eq!(lengths.expected(None, Some(4096)), 500);
    }

    #[test]
    fn mean_follows_a_change_and_absurd_replies_do_no_harm() {
        let lengths = OutputLengths::default();
        lengths.observe(None, u64::MAX);
        for _ in 0..2000 {
            lengths.observe(None, 200);
        }
        assert!(
            (190..=210).contains(&lengths.expected(None, None)),
            "{lengths:?}"
        );
    }

    #[test]
    fn key_that_takes_anothers_place_starts_anew() {
        let key = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let lengths = OutputLengths::default();
        for number in 0..20_000 {
            lengths.observe(Some(key(number)), 7);
        }
        for number in 20_000..20_010 {
            let key = key(number);
            for _ in 0..4 {
                lengths.observe(Some(key), 90);
            }
            assert_eq!(lengths.expected(Some(key), None), 90);
        }
    }
}
