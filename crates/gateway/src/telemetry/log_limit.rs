//! Log lines that may come thousands of times are written now and then, or up to a rate.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shortest time between two lines.
const PERIOD: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// Lets one line pass per ten seconds.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    last: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// Whether a line may be written now: the number of those left out before it, if so.
    pub(crate) fn pass(&self) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if lines.last.is_some_and(|last| now < last + PERIOD) {
            lines.left_out += 1;
            return None;
        }
        lines.last = Some(now);
        Some(std::mem::take(&mut lines.left_out))
    }
}

/// Lets so many lines pass per second.
#[derive(Debug)]
pub(crate) struct LogRate {
    per_second: u64,
    second: Mutex<Second>,
}

#[derive(Debug, Default)]
struct Second {
    begun: Option<Instant>,
    passed: u64,
    left_out: u64,
}

impl LogRate {
    pub(crate) fn new(per_second: u64) -> Self {
        Self {
            per_second,
            second: Mutex::default(),
        }
    }

    /// Whether a line may be written now: the number of those left out before it, if so.
    pub(crate) fn pass(&self) -> Option<u64> {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if second.begun.is_none_or(|begun| now >= begun + SECOND) {
            second.begun = Some(now);
            second.passed = 0;
        }
        if second.passed == self.per_second {
            second.left_out += 1;
            return None;
        }
        second.passed += 1;
        Some(std::mem::take(&mut second.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_passes_per_period_and_counts_those_left_out() {
        let limit = LogLimit::default();
        assert_eq!(limit.pass(), Some(0));
        assert_eq!((limit.pass(), limit.pass()), (None, None));
        tokio::time::sleep(PERIOD).await;
        assert_eq!(limit.pass(), Some(2));
        tokio::time::sleep(PERIOD).await;
        assert_eq!(limit.pass(), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn lines_of_a_second_pass_up_to_the_rate() {
        let rate = LogRate::new(2);
        assert_eq!((rate.pass(), rate.pass()), (Some(0), Some(0)));
        assert_eq!((rate.pass(), rate.pass()), (None, None));
        tokio::time::sleep(SECOND).await;
        assert_eq!((rate.pass(), rate.pass()), (Some(2), Some(0)));
        assert_eq!(rate.pass(), None);
    }
}
