//! What the control thread sees of a lane, and asks of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// [`LaneStatus::last_active`] of a lane that has had no request.
const NEVER: u64 = u64::MAX;

/// Which connections make room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shed {
    /// Those that have had no request yet.
    Unused,
    /// Also those between requests.
    Any,
}

/// The state of a lane.
#[derive(Debug)]
pub(super) struct LaneStatus {
    started: Instant,
    /// Open connections.
    pub(super) open: AtomicUsize,
    /// A request has come since the last look.
    active: AtomicBool,
    /// Seconds after the start.
    last_active: AtomicU64,
    /// Connections to end.
    shed: AtomicUsize,
    /// Also such that have served requests.
    shed_used: AtomicBool,
    pub(super) shed_asked: Notify,
    /// Connections, and what they have become after an upgrade.
    pub(super) tasks: TaskTracker,
}

/// Counts a connection as open until dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<LaneStatus>);

impl Open {
    /// For a connection that has been counted already.
    pub(super) fn counted(lane: &Arc<LaneStatus>) -> Self {
        Self(Arc::clone(lane))
    }

    pub(super) fn count(lane: &Arc<LaneStatus>) -> Self {
        lane.open.fetch_add(1, Relaxed);
        Self::counted(lane)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl Default for LaneStatus {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            open: AtomicUsize::new(0),
            active: AtomicBool::new(false),
            last_active: AtomicU64::new(NEVER),
            shed: AtomicUsize::new(0),
            shed_used: AtomicBool::new(false),
            shed_asked: Notify::new(),
            tasks: TaskTracker::new(),
        }
    }
}

impl LaneStatus {
    /// A request has come.
    pub(super) fn note_request(&self) {
        self.active.store(true, Relaxed);
    }

    /// A second has passed.
    pub(super) fn look(&self) {
        if self.active.swap(false, Relaxed) {
            let now = self.started.elapsed().as_secs();
            self.last_active.store(now, Relaxed);
        }
    }

    /// How long ago the last request came, to the second; `None` if none has.
    pub(super) fn quiet_for(&self) -> Option<Duration> {
        if self.active.load(Relaxed) {
            return Some(Duration::ZERO);
        }
        let last = self.last_active.load(Relaxed);
        let last = Some(last).filter(|&last| last != NEVER)?;
        let ago = self.started.elapsed().as_secs().saturating_sub(last);
        Some(Duration::from_secs(ago))
    }

    /// Has the lane end so many connections without a request in progress.
    pub(super) fn ask_to_shed(&self, count: usize, which: Shed) {
        self.shed.store(count, Relaxed);
        self.shed_used.store(which == Shed::Any, Relaxed);
        self.shed_asked.notify_one();
    }

    /// How many connections are to be ended, and which.
    pub(super) fn take_shed(&self) -> (usize, Shed) {
        let which = if self.shed_used.load(Relaxed) {
            Shed::Any
        } else {
            Shed::Unused
        };
        (self.shed.swap(0, Relaxed), which)
    }
}
