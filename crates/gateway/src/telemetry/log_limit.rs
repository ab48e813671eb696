//! Log lines that may come thousands of times are written now and then.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shortest time between two lines.
const PERIOD: Duration = Duration::from_secs(10);

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
}
