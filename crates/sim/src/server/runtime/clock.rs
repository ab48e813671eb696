//! The engines' clock. It stands still while generation is paused.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Time since the worker's start, without the time that the clock stood still.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    state: Mutex<ClockState>,
}

#[derive(Debug, Default)]
struct ClockState {
    /// Since when it stands still.
    stopped_at: Option<Instant>,
    /// How long it stood still before.
    stood_still: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    pub(crate) fn now(&self) -> Duration {
        let state = self.lock();
        let until = state.stopped_at.unwrap_or_else(Instant::now);
        (until - self.started).saturating_sub(state.stood_still)
    }

    /// When the clock will show `at`; `None` while it stands still.
    pub(crate) fn instant_of(&self, at: Duration) -> Option<Instant> {
        let state = self.lock();
        let running = state.stopped_at.is_none();
        running.then(|| self.started + at + state.stood_still)
    }

    pub(crate) fn stop(&self) {
        self.lock().stopped_at.get_or_insert_with(Instant::now);
    }

    pub(crate) fn go_on(&self) {
        let mut state = self.lock();
        if let Some(since) = state.stopped_at.take() {
            state.stood_still += since.elapsed();
        }
    }

    fn lock(&self) -> MutexGuard<'_, ClockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clock_leaves_out_the_time_that_it_stood_still() {
        let (clock, second) = (Clock::new(), Duration::from_secs(1));
        advance(second).await;
        clock.stop();
        advance(second * 5).await;
        clock.stop();
        assert_eq!((clock.now(), clock.instant_of(second * 3)), (second, None));
        clock.go_on();
        advance(second).await;
        assert_eq!(clock.now(), second * 2);
        assert_eq!(clock.instant_of(second * 3), Some(Instant::now() + second));
    }
}
