//! Where lanes leave what is to be recorded.

use std::array;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntCounter;
use routing::Request;
use routing::prefix::ChainBlock;

use super::record::{Record, RecordedPrompt};

/// Lists of records, so that lanes need not wait for each other.
const SHARDS: usize = 16;
/// Records of a list that wait to be written; further ones are dropped rather than hold up a
/// request.
pub(super) const MOST_WAITING: usize = 2048;

/// Takes records without waiting.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    shards: Arc<[Shard; SHARDS]>,
    block: ChainBlock,
    queue_full: IntCounter,
}

/// A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<Vec<Record>>);

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    pub(super) fn new(block: ChainBlock, queue_full: IntCounter) -> Self {
        Self {
            shards: Arc::new(array::from_fn(|_| Shard::default())),
            block,
            queue_full,
        }
    }

    /// What is recorded of the prompt of a request that allows so many tokens of output.
    pub(crate) fn prompt(&self, request: &Request<'_>, max_tokens: Option<u64>) -> RecordedPrompt {
        RecordedPrompt::of(request, max_tokens, self.block)
    }

    /// Records a request of this lane.
    pub(crate) fn push(&self, lane: usize, record: Record) {
        let mut waiting = self.shards[lane % SHARDS].lock();
        if waiting.len() >= MOST_WAITING {
            self.queue_full.inc();
        } else {
            waiting.push(record);
        }
    }

    /// Takes all that wait, one list after the other; `batch` is empty again afterwards.
    pub(super) fn take(&self, batch: &mut Vec<Record>, mut write: impl FnMut(&[Record])) {
        for shard in self.shards.iter() {
            mem::swap(&mut *shard.lock(), batch);
            if !batch.is_empty() {
                write(batch);
                batch.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn records_beyond_what_may_wait_are_dropped_and_counted() {
        let dropped = IntCounter::new("dropped", "records").unwrap();
        let recorder = Recorder::new(ChainBlock::of(32), dropped.clone());
        for _ in 0..MOST_WAITING + 3 {
            recorder.push(5, record());
        }
        recorder.push(6, record());
        assert_eq!(dropped.get(), 3);
        let mut taken = Vec::new();
        let mut batch = Vec::new();
        recorder.take(&mut batch, |records| taken.push(records.len()));
        assert_eq!(taken, [MOST_WAITING, 1]);
        recorder.take(&mut batch, |_| panic!("nothing waits"));
    }
}
