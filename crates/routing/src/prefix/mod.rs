//! Which worker has seen which prefix of a prompt: an index with an exact byte budget.
//!
//! A prompt is cut into blocks of [`BLOCK`] bytes, each known by its hash only, and kept in
//! a radix tree whose nodes hold runs of blocks and the set of workers that have them
//! (the idea of SGLang's `RadixAttention`, Zheng et al. 2023, over hashes instead of tokens).
//! The whole is bounded in bytes; the least recently used leaf goes first, exactly.

mod blocks;
mod holders;
mod members;
mod tree;

use std::fmt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use blocks::{BLOCK, MAX_BLOCKS, hash_blocks};

use crate::Candidate;
use members::Members;
use tree::Tree;

/// Nodes looked at per insertion while a worker that left is being forgotten.
const PURGE_SLICE: usize = 512;

/// The index. Look-ups do not block each other; an insertion is short and exclusive.
pub struct PrefixIndex {
    inner: RwLock<Inner>,
}

struct Inner {
    tree: Tree,
    members: Members,
}

impl PrefixIndex {
    /// An empty index that never uses more than `budget` bytes of memory, nor knows more than
    /// `text` bytes of prompts.
    pub fn new(budget: usize, text: Option<u64>) -> Self {
        let inner = Inner {
            tree: Tree::new(budget, most_blocks(text)),
            members: Members::default(),
        };
        Self {
            inner: RwLock::new(inner),
        }
    }

    /// How many leading blocks each worker has, written to `matched` by slot.
    ///
    /// `matched` is made as long as needed and zeroed first.
    pub fn matches(&self, blocks: &[u64], matched: &mut Vec<u32>) {
        let inner = self.read();
        matched.clear();
        matched.resize(inner.members.slots(), 0);
        inner.tree.matches(blocks, |seat, depth| {
            if let Some(matched) = inner
                .members
                .slot(seat)
                .and_then(|slot| matched.get_mut(slot))
            {
                *matched = depth;
            }
        });
    }

    /// From now on this worker has these blocks.
    pub fn insert(&self, blocks: &[u64], candidate: &Candidate) {
        let mut inner = self.write();
        let inner = &mut *inner;
        let seat = inner.members.seat(candidate);
        let blocks = blocks.get(..MAX_BLOCKS).unwrap_or(blocks);
        inner.tree.insert(blocks, seat);
        inner.purge_slice();
    }

    /// Everybody there is; who is not in the list, or has a new generation, has no blocks any
    /// more. Takes effect at once; the memory is freed in slices by later insertions.
    pub fn members(&self, all: &[Candidate]) {
        let mut inner = self.write();
        inner.members.keep(all);
        inner.purge_slice();
    }

    /// From now on it knows no more than `text` bytes of prompts; a lower limit than before is
    /// reached over the next insertions.
    pub fn limit_text(&self, text: Option<u64>) {
        self.write().tree.limit_blocks(most_blocks(text));
    }

    /// Frees one slice of what departed workers left behind; tells whether there is more.
    pub fn purge(&self) -> bool {
        let mut inner = self.write();
        inner.purge_slice();
        inner.members.purging().is_some()
    }

    /// Bytes in use; never above the budget.
    pub fn bytes(&self) -> usize {
        self.read().tree.bytes()
    }

    /// Nodes in use.
    pub fn nodes(&self) -> usize {
        self.read().tree.nodes()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn most_blocks(text: Option<u64>) -> usize {
    let most = text.map_or(u64::MAX, |text| text / BLOCK as u64);
    usize::try_from(most).unwrap_or(usize::MAX)
}

impl fmt::Debug for PrefixIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.read();
        let (bytes, peak) = (inner.tree.bytes(), inner.tree.peak());
        f.debug_struct("PrefixIndex")
            .field("nodes", &inner.tree.nodes())
            .field("bytes", &bytes)
            .field("peak_bytes", &peak)
            .finish()
    }
}

impl Inner {
    fn purge_slice(&mut self) {
        if let Some((seat, at)) = self.members.purging() {
            let next = self.tree.purge(seat, at, PURGE_SLICE);
            self.members.purged_up_to(next);
        }
    }
}
