//! Waiting for an event, with a deadline.

use std::future::Future;
use std::time::Duration;

use tokio::time::{sleep, timeout};

/// Longest wait for anything; reached only when a test fails.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    let waiting = async {
        while !condition().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    in_time("condition did not come true", waiting).await;
}

/// What comes within the deadline; panics with `failure` otherwise.
pub(crate) async fn in_time<T>(failure: &str, awaited: impl Future<Output = T>) -> T {
    let result = timeout(DEADLINE, awaited).await;
    result.unwrap_or_else(|_| panic!("{failure} within {DEADLINE:?}"))
}
