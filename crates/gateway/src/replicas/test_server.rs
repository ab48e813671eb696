//! What servers of tests have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::link::LinkError;

/// Whether a server answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    is_frozen: Arc<AtomicBool>,
}

impl Answers {
    pub(super) fn freeze(&self) {
        self.is_frozen.store(true, Relaxed);
    }

    pub(super) fn resume(&self) {
        self.is_frozen.store(false, Relaxed);
    }

    /// Fails after a while if it does not.
    pub(super) async fn in_time(&self) -> Result<(), LinkError> {
        if self.is_frozen.load(Relaxed) {
            sleep(Duration::from_millis(500)).await;
            return Err(LinkError("no answer in time".to_owned()));
        }
        Ok(())
    }
}

pub(super) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_mins(1);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(1)).await;
    }
}
