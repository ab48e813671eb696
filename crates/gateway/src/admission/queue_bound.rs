//! How many requests may wait in a queue.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use routing::quota::{QueueRoom, QueueUse};

/// The bound of a queue: what the options say, less what other gateways have of it where they share it.
#[derive(Debug)]
pub(super) struct QueueBound {
    /// What the options say.
    size: AtomicUsize,
    elsewhere: AtomicU64,
    most: AtomicU64,
    refused: AtomicU64,
}

impl QueueBound {
    pub(super) fn new(size: usize) -> Self {
        let QueueRoom { elsewhere, most } = QueueRoom::ALL;
        Self {
            size: AtomicUsize::new(size),
            elsewhere: AtomicU64::new(elsewhere),
            most: AtomicU64::new(most),
            refused: AtomicU64::new(0),
        }
    }

    /// What the options say.
    pub(super) fn size(&self) -> usize {
        self.size.load(SeqCst)
    }

    pub(super) fn set_size(&self, size: usize) {
        self.size.store(size, SeqCst);
    }

    /// Requests that may wait at this gateway.
    pub(super) fn here(&self) -> usize {
        let room = QueueRoom {
            elsewhere: self.elsewhere.load(SeqCst),
            most: self.most.load(SeqCst),
        };
        usize::try_from(room.of(self.size() as u64)).unwrap_or(usize::MAX)
    }

    /// Requests that wait at other gateways, as far as this one knows.
    pub(super) fn elsewhere(&self) -> usize {
        usize::try_from(self.elsewhere.load(SeqCst)).unwrap_or(usize::MAX)
    }

    /// Sets what other gateways leave of it.
    pub(super) fn set_room(&self, room: QueueRoom) {
        self.elsewhere.store(room.elsewhere, SeqCst);
        self.most.store(room.most, SeqCst);
    }

    /// A request may not wait, or not any longer, for too many do.
    pub(super) fn note_refusal(&self) {
        self.refused.fetch_add(1, SeqCst);
    }

    /// What gateways that share a queue bound together; 0 where it is not used.
    pub(super) fn total(&self, is_used: bool) -> u64 {
        if is_used { self.size() as u64 } else { 0 }
    }

    /// What is done with a queue in which so many wait.
    pub(super) fn usage(&self, waiting: usize) -> QueueUse {
        QueueUse {
            waiting: waiting as u64,
            refused: self.refused.load(SeqCst),
        }
    }
}
