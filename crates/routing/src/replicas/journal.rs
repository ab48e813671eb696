//! The placements of one gateway that have not been published yet.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::message::{MAX_BLOCKS_SENT, Placement};

/// A bounded list. Threads that route append to it; the thread that publishes takes all of it.
///
/// The lock is held for one copy of at most 32 KiB, or for a swap of two buffers. Nothing is allocated
/// once both buffers have grown.
#[derive(Debug)]
pub struct Journal {
    words: Mutex<Vec<u64>>,
    /// Words at most.
    capacity: usize,
    dropped: AtomicU64,
    /// What is known of other gateways: 0 unheard, 1 shared, else apart.
    sight: AtomicU32,
}

/// What is known of the other gateways at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// None has been heard. There may be some, as the options say.
    Unheard,
    /// They say what they do.
    Shared,
    /// There were so many gateways, this one included; the others are not heard any more.
    Apart(u32),
}

impl Journal {
    /// A journal of at most so many bytes; what would be more is dropped and counted.
    pub fn new(bytes: usize) -> Self {
        Self {
            words: Mutex::default(),
            capacity: bytes / size_of::<u64>(),
            dropped: AtomicU64::new(0),
            sight: AtomicU32::new(0),
        }
    }

    /// Sets what is known of other gateways.
    pub fn set_sight(&self, sight: Sight) {
        let code = match sight {
            Sight::Unheard => 0,
            Sight::Shared => 1,
            Sight::Apart(gateways) => gateways.max(2),
        };
        self.sight.store(code, Relaxed);
    }

    /// What is known of other gateways.
    pub fn sight(&self) -> Sight {
        match self.sight.load(Relaxed) {
            0 => Sight::Unheard,
            1 => Sight::Shared,
            gateways => Sight::Apart(gateways),
        }
    }

    /// Notes that the worker with this URL hash now holds the leading blocks of a prompt.
    pub fn note(&self, worker: u64, blocks: &[u64]) {
        let blocks = blocks.get(..MAX_BLOCKS_SENT).unwrap_or(blocks);
        let placement = Placement {
            workers: &[worker],
            blocks,
        };
        let mut words = self.lock();
        if words.len() + placement.words() <= self.capacity {
            placement.write(&mut words);
        } else {
            drop(words);
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Placements that were dropped because they were not taken in time.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Drops all that is in it, and returns how many placements those were.
    pub fn clear(&self) -> u64 {
        let mut words = self.lock();
        let dropped = Placement::all(&words).count();
        words.clear();
        dropped as u64
    }

    /// Swaps the contents with an empty buffer.
    pub(super) fn take(&self, into: &mut Vec<u64>) {
        into.clear();
        std::mem::swap(&mut *self.lock(), into);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Journal {
    /// The same journal, not one with the same contents.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
