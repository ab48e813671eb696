//! One sequence's place on the floor, as the answer that waits for it sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::floor::Floor;
use crate::engine::JobId;

/// Why a sequence is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All its tokens are made.
    Finished,
    /// Dropped by `POST /abort_request`.
    Aborted,
}

/// How far a sequence is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) end: Option<End>,
}

/// Where the floor leaves progress; newer progress replaces older.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) rid: Arc<str>,
    slot: Mutex<Slot>,
}

#[derive(Debug)]
struct Slot {
    progress: Progress,
    waker: Option<Waker>,
}

impl Seat {
    pub(crate) fn new(rid: Arc<str>, progress: Progress) -> Self {
        let slot = Slot {
            progress,
            waker: None,
        };
        Self {
            rid,
            slot: Mutex::new(slot),
        }
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut slot = self.slot();
        change(&mut slot.progress);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while an answer is owed; dropping it early aborts the sequence.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) floor: Arc<Floor>,
    pub(crate) rank: u32,
    pub(crate) job: JobId,
    pub(crate) seat: Option<Arc<Seat>>, // none when it was over before anyone had to wait
    pub(crate) progress: Progress,
}

impl Ticket {
    /// Waits for anything newer than the progress seen last.
    pub(crate) fn poll_change(&mut self, cx: &Context<'_>) -> Poll<Progress> {
        let Some(seat) = &self.seat else {
            return Poll::Ready(self.progress);
        };
        let mut slot = seat.slot();
        if slot.progress == self.progress {
            slot.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.progress = slot.progress;
        Poll::Ready(self.progress)
    }

    /// Waits for the end.
    pub(crate) async fn finish(&mut self) {
        while self.progress.end.is_none() {
            std::future::poll_fn(|cx| self.poll_change(cx)).await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.progress.end.is_none() {
            self.floor.leave(self.rank, self.job);
        }
    }
}
