//! When requests are due, at a steady rate.

use std::thread;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

/// Requests that are due. A connection takes one when it is free.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<UnboundedReceiver<Instant>>);

impl Pace {
    /// `rate` requests per second. They are released by a thread: the timers of tokio are a millisecond apart, so that requests would
    /// come in bursts.
    pub(crate) fn start(rate: u32) -> Self {
        let (released, due) = unbounded_channel();
        thread::spawn(move || release(rate, &released));
        Self(Mutex::new(due))
    }

    /// When the next request was released; waits until one is.
    pub(crate) async fn next(&self) -> Instant {
        match self.0.lock().await.recv().await {
            Some(released) => released,
            // The thread ends only when this channel is closed.
            None => Instant::now(),
        }
    }
}

/// Ends when the channel is closed.
fn release(rate: u32, released: &UnboundedSender<Instant>) {
    let started = Instant::now();
    for count in 0_u64.. {
        let due = started + Duration::from_nanos(count * 1_000_000_000 / u64::from(rate));
        #[expect(
            clippy::disallowed_methods,
            reason = "the time itself is what is waited for"
        )]
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // The time of release, not that for which it was meant: how late this thread wakes is not the gateway's.
        if released.send(Instant::now()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_released_at_the_rate_and_none_before_it_is_due() {
        let started = Instant::now();
        let pace = Pace::start(1000);
        for _ in 0..50 {
            pace.next().await;
        }
        assert!(started.elapsed() >= Duration::from_millis(49));
    }

    #[tokio::test]
    async fn a_request_that_nothing_took_keeps_the_time_of_its_release() {
        let pace = Pace::start(1000);
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(20) {
            tokio::task::yield_now().await;
        }
        assert!(pace.next().await.duration_since(started) < Duration::from_millis(15));
    }
}
