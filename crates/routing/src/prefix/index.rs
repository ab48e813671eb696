//! The index as policies use it: look-ups that run side by side, short exclusive insertions.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::blocks::{BLOCK, MAX_BLOCKS};
use super::clock::Clock;
use super::ids::{BlockRange, SlotId};
use super::members::Members;
use super::prediction::{CacheUse, Correction};
use super::tree::Tree;
use super::walk::Walk;
use crate::Candidate;

/// Arena slots that each insertion searches while the blocks of departed workers are purged.
const PURGE_SLICE: usize = 512;
/// Nodes that are exported while the index is locked for reading.
const EXPORT_SLICE: usize = 32;

thread_local! {
    /// Reused by all look-ups of a thread, so that a look-up allocates nothing.
    static WALK: RefCell<Walk> = RefCell::default();
}

/// The index. Look-ups do not block each other; an insertion is short and exclusive.
pub struct PrefixIndex {
    inner: RwLock<Inner>,
}

/// What remains of a list of nodes, the next to export at its end.
#[derive(Debug)]
pub struct Export {
    nodes: Vec<SlotId>,
}

impl Export {
    /// Whether all has been exported.
    pub fn is_done(&self) -> bool {
        self.nodes.is_empty()
    }
}

struct Inner {
    tree: Tree,
    members: Members,
}

impl PrefixIndex {
    /// An empty index that uses at most `budget` bytes of memory and knows at most `text` bytes
    /// of prompts.
    pub fn new(budget: usize, text: Option<u64>) -> Self {
        let inner = Inner {
            tree: Tree::new(budget, max_blocks(text)),
            members: Members::default(),
        };
        Self {
            inner: RwLock::new(inner),
        }
    }

    /// Writes the number of leading blocks that each worker holds to `matched`, by slot.
    ///
    /// `matched` is resized to the fleet and zeroed first.
    pub fn matches(&self, blocks: &[u64], matched: &mut Vec<u32>) {
        let inner = self.read();
        matched.clear();
        matched.resize(inner.members.slots(), 0);
        let visit = |member, stamp, range| {
            let Some((slot, clock)) = inner.members.state(member) else {
                return;
            };
            if let Some(matched) = matched.get_mut(slot).filter(|matched| **matched == 0) {
                *matched = clock.cached_depth(stamp, range);
            }
        };
        WALK.with_borrow_mut(|walk| inner.tree.matches(blocks, walk, visit));
    }

    /// Records that the worker now holds these blocks; `None` if it has left.
    pub fn insert(&self, blocks: &[u64], candidate: &Candidate) -> Option<CacheUse> {
        let mut inner = self.write();
        let inner = &mut *inner;
        let member = inner.members.id_of(candidate);
        let blocks = blocks.get(..MAX_BLOCKS).unwrap_or(blocks);
        let known = member.and_then(|id| Some((id, inner.members.present_mut(id)?)));
        let used = known.map(|(id, member)| {
            let decided = member.clock.now();
            let clock = &mut member.clock;
            let last_use = WALK.with_borrow_mut(|walk| inner.tree.insert(blocks, id, clock, walk));
            CacheUse {
                reports: Arc::clone(&member.reports),
                last_use,
                decided,
                stamp: clock.now(),
            }
        });
        inner.purge_slice();
        used
    }

    /// Forgets what a reply has disproved of a worker's cache.
    pub fn correct(&self, correction: &Correction) {
        let mut inner = self.write();
        if let Some(clock) = inner.members.clock_of(&correction.reports) {
            clock.forget_before(correction.floor);
        }
    }

    /// A list of the at most `most` most recently used nodes.
    pub fn begin_export(&self, most: usize) -> Export {
        let mut nodes = Vec::with_capacity(most.min(self.nodes()));
        self.read().tree.newest(most, &mut nodes);
        Export { nodes }
    }

    /// Calls `visit` with the next prefixes of the list and the slots of the workers that hold each,
    /// as far as their caches are believed to. Prefixes of longer ones are left out. The index is
    /// read for a moment only.
    pub fn export(&self, export: &mut Export, visit: &mut dyn FnMut(&[u64], &[usize])) {
        let inner = self.read();
        let (mut blocks, mut slots) = (Vec::new(), Vec::new());
        let after = export.nodes.len().saturating_sub(EXPORT_SLICE);
        for at in export.nodes.split_off(after).into_iter().rev() {
            if !inner.tree.read_leaf(at, &mut blocks) {
                continue;
            }
            slots.clear();
            let range = BlockRange {
                start: 0,
                end: blocks.len() as u32,
            };
            inner.tree.visit_holders(at, |member, stamp| {
                let held = inner.members.state(member);
                let held = held.filter(|(_, clock)| clock.cached_depth(stamp, range) > 0);
                slots.extend(held.map(|(slot, _)| slot));
            });
            if !slots.is_empty() {
                visit(&blocks, &slots);
            }
        }
    }

    /// Replaces the list of workers.
    ///
    /// A worker that is not in the list, or has a new generation, holds no blocks from now on.
    /// Later insertions free their memory in slices.
    pub fn set_members(&self, all: &[Candidate]) {
        let mut inner = self.write();
        inner.members.keep(all);
        inner.purge_slice();
    }

    /// Sets the bytes of prompts that each worker's cache holds, by slot; `None` or 0 if the
    /// worker does not report it. A block that the worker must have evicted since is not matched.
    pub fn set_cache_sizes(&self, bytes_by_slot: &[Option<u64>]) {
        let blocks = |bytes: &Option<u64>| match bytes.map_or(0, |bytes| bytes / BLOCK as u64) {
            0 => Clock::UNKNOWN,
            blocks => u32::try_from(blocks).unwrap_or(Clock::UNKNOWN),
        };
        let capacities = bytes_by_slot.iter().map(blocks).collect();
        self.write().members.set_capacities(capacities);
    }

    /// Frees one slice of the blocks of departed workers; true while there are more.
    pub fn purge(&self) -> bool {
        let mut inner = self.write();
        inner.purge_slice();
        inner.members.purging().is_some()
    }

    /// Bytes in use: never above the budget, if that is at least a few hundred bytes.
    pub fn bytes(&self) -> usize {
        self.read().tree.bytes()
    }

    /// Nodes in use.
    pub fn nodes(&self) -> usize {
        self.read().tree.nodes()
    }

    /// Workers with an entry beside the budget, 24 bytes each: those present, and those that
    /// have left and are not purged yet.
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

fn max_blocks(text: Option<u64>) -> usize {
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
