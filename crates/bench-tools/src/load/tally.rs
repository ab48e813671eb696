//! What the connections count.

use std::time::Duration;

/// Counters and samples since the last reset.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Whole replies with a 2xx status.
    pub(crate) requests: u64,
    /// Replies with another status, of a wrong number of events, cut off, or malformed.
    pub(crate) errors: u64,
    pub(crate) events: u64,
    /// From the first byte written to the last byte read.
    pub(crate) latency: Samples,
    /// From the first byte written to the first byte of the body.
    pub(crate) first_byte: Samples,
    /// Between two reads of one body.
    pub(crate) gap: Samples,
    /// The first error, in words.
    pub(crate) first_error: Option<String>,
}

impl Tally {
    pub(crate) fn add_error(&mut self, what: impl FnOnce() -> String) {
        self.errors += 1;
        self.first_error.get_or_insert_with(what);
    }
}

/// Durations in microseconds.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<u32>);

impl Samples {
    pub(crate) fn add(&mut self, duration: Duration) {
        self.0
            .push(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX));
    }

    /// The value in milliseconds that a share of the samples does not exceed (nearest rank); 0 without samples.
    pub(crate) fn percentile_ms(&mut self, percent: usize) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        let rank = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        let (_, value, _) = self.0.select_nth_unstable(rank);
        f64::from(*value) / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile_ms(99).to_bits(), 0.0_f64.to_bits());
        for ms in (1..=200).rev() {
            samples.add(Duration::from_millis(ms));
        }
        let found = [50, 99, 100].map(|percent| samples.percentile_ms(percent).to_string());
        assert_eq!(found, ["100", "198", "200"]);
    }
}
