//! Which worker has seen which prefix of a prompt: an index with an exact byte budget.
//!
//! A prompt is cut into blocks of [`BLOCK`] bytes, each known by its hash only, and kept in
//! a radix tree whose nodes hold runs of blocks and the set of workers that have them
//! (the idea of SGLang's `RadixAttention`, Zheng et al. 2023, over hashes instead of tokens).
//! The whole is bounded in bytes; the least recently used leaf goes first, exactly.

mod arena;
mod blocks;
mod children;
mod clock;
mod holders;
mod members;
mod node;
mod order;
mod segments;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::cell::RefCell;
use std::fmt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use blocks::{BLOCK, MAX_BLOCKS, hash_blocks};

use crate::Candidate;
use clock::Clock;
use members::Members;
use tree::Tree;
use walk::Walk;

/// Slots looked at per insertion while a worker that left is being forgotten.
const PURGE_SLICE: usize = 512;

thread_local! {
    /// Kept from look-up to look-up, so that one allocates nothing.
    static WALK: RefCell<Walk> = RefCell::default();
}

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
        let tell = |member, stamp, (start, end)| {
            let Some((slot, clock)) = inner.members.state(member) else {
                return;
            };
            if let Some(matched) = matched.get_mut(slot).filter(|matched| **matched == 0) {
                *matched = clock.depth(stamp, start, end);
            }
        };
        WALK.with_borrow_mut(|walk| inner.tree.matches(blocks, walk, tell));
    }

    /// From now on this worker has these blocks.
    pub fn insert(&self, blocks: &[u64], candidate: &Candidate) {
        let mut inner = self.write();
        let inner = &mut *inner;
        let member = inner.members.id_of(candidate);
        let blocks = blocks.get(..MAX_BLOCKS).unwrap_or(blocks);
        if let Some(member) = member
            && let Some(clock) = inner.members.clock(member)
        {
            WALK.with_borrow_mut(|walk| inner.tree.insert(blocks, member, clock, walk));
        }
        inner.purge_slice();
    }

    /// Everybody there is; who is not in the list, or has a new generation, has no blocks any
    /// more. Takes effect at once; the memory is freed in slices by later insertions.
    pub fn members(&self, all: &[Candidate]) {
        let mut inner = self.write();
        inner.members.keep(all);
        inner.purge_slice();
    }

    /// How many bytes of prompts each worker's cache holds, by slot; `None` (or 0) for one that
    /// does not tell. A block that its worker must have evicted since is not matched any more.
    pub fn capacity(&self, text: &[Option<u64>]) {
        let blocks = |text: &Option<u64>| match text.map_or(0, |text| text / BLOCK as u64) {
            0 => Clock::UNKNOWN,
            blocks => u32::try_from(blocks).unwrap_or(Clock::UNKNOWN),
        };
        let holds = text.iter().map(blocks).collect();
        self.write().members.hold(holds);
    }

    /// Frees one slice of what departed workers left behind; tells whether there is more.
    pub fn purge(&self) -> bool {
        let mut inner = self.write();
        inner.purge_slice();
        inner.members.purging().is_some()
    }

    /// Bytes in use: never above the budget, if that is a few hundred at least.
    pub fn bytes(&self) -> usize {
        self.read().tree.bytes()
    }

    /// Nodes in use.
    pub fn nodes(&self) -> usize {
        self.read().tree.nodes()
    }

    /// Workers there is room for beside the budget, 24 bytes each: those that are there, and those
    /// that left and have not been purged yet.
    pub fn member_ids(&self) -> usize {
        self.read().members.count_ids()
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
        f.debug_struct("PrefixIndex")
            .field("nodes", &inner.tree.nodes())
            .field("bytes", &inner.tree.bytes())
            .finish()
    }
}

impl Inner {
    fn purge_slice(&mut self) {
        if let Some((members, at)) = self.members.purging() {
            let next = self.tree.purge(members, at, PURGE_SLICE);
            self.members.purged_up_to(next);
        }
    }
}
