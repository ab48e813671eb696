//! The index's memory: slots of one size that hold every part of the tree.
//!
//! Every slot fits every purpose. So nothing fragments, allocating a slot and freeing a chain
//! of any length take constant time, and the bytes in use are known exactly. The general
//! allocator instead coalesces hundreds of thousands of freed runs at unpredictable moments.

use super::ids::{MemberId, SlotId, Stamp};
use super::node::{HEAD, INLINE_HOLDERS, Node};
use super::segments::Segments;

/// Blocks in a slot that continues a run.
pub(super) const RUN: usize = 15;
/// Holders in a slot that continues a node's holders.
pub(super) const HOLDER_SET: usize = 20;

/// The content of a slot. Slots other than nodes are chained by `next`.
#[derive(Debug)]
#[repr(align(64))]
enum Slot {
    Node(Node),
    Run {
        next: SlotId,
        blocks: [u64; RUN],
    },
    HolderSet(HolderSet),
    /// A free slot: the next one of its chain, and the first one of the next free chain.
    Free {
        next: SlotId,
        chain: SlotId,
    },
}

/// Holders that do not fit into their node.
#[derive(Clone, Debug)]
pub(super) struct HolderSet {
    pub(super) next: SlotId,
    pub(super) stamps: [Stamp; HOLDER_SET],
    pub(super) members: [MemberId; HOLDER_SET],
}

/// 2 048 slots of 128 bytes per segment: 256 KiB.
type Slots = Segments<Slot, 11>;

#[derive(Debug)]
pub(super) struct Arena {
    slots: Slots,
    /// The first slot of the first free chain.
    free: SlotId,
    free_count: usize,
    /// Stands in for a slot that is no node, so that a wrong number cannot panic.
    no_node: Node,
    /// Stands in for a slot without holders.
    no_holders: HolderSet,
}

impl Arena {
    /// An arena of at most `budget` bytes; the root is there whatever the budget.
    pub(super) fn new(budget: usize) -> Self {
        let mut most = (budget / size_of::<Slot>()).min(SlotId::MAX as usize);
        while Slots::needed(most) > budget && most > 1 {
            most -= (Slots::needed(most) - budget)
                .div_ceil(size_of::<Slot>())
                .min(most - 1);
        }
        let mut slots = Slots::new(most.max(1));
        slots.push(Slot::Node(Node::default()));
        Self {
            slots,
            free: 0,
            free_count: 0,
            no_node: Node::default(),
            no_holders: HolderSet::EMPTY,
        }
    }

    /// Slots that fit into so many bytes.
    pub(super) fn slots_in(bytes: usize) -> usize {
        bytes / size_of::<Slot>()
    }

    /// Bytes in use, free slots included.
    pub(super) fn bytes(&self) -> usize {
        self.slots.bytes()
    }

    /// Slots in use or free.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Slots that can be allocated.
    pub(super) fn room(&self) -> usize {
        self.slots.room() + self.free_count
    }

    /// The node in a slot.
    pub(super) fn node(&self, at: SlotId) -> &Node {
        self.find_node(at as usize).unwrap_or(&self.no_node)
    }

    /// The same node, mutable.
    pub(super) fn node_mut(&mut self, at: SlotId) -> &mut Node {
        match self.slots.at_mut(at as usize) {
            Slot::Node(node) => node,
            _ => &mut self.no_node,
        }
    }

    /// The node in a slot, if the slot holds one.
    pub(super) fn find_node(&self, at: usize) -> Option<&Node> {
        match self.slots.at(at) {
            Slot::Node(node) => Some(node),
            _ => None,
        }
    }

    /// The blocks in a slot that continues a run, and the next slot of the run.
    pub(super) fn run(&self, at: SlotId) -> (&[u64; RUN], SlotId) {
        match self.slots.at(at as usize) {
            Slot::Run { next, blocks } => (blocks, *next),
            _ => (&[0; RUN], 0),
        }
    }

    /// The holders in a slot that continues a node's holders.
    pub(super) fn holder_set(&self, at: SlotId) -> &HolderSet {
        match self.slots.at(at as usize) {
            Slot::HolderSet(holder_set) => holder_set,
            _ => &self.no_holders,
        }
    }

    /// The same holders, mutable.
    pub(super) fn holder_set_mut(&mut self, at: SlotId) -> &mut HolderSet {
        match self.slots.at_mut(at as usize) {
            Slot::HolderSet(holder_set) => holder_set,
            _ => &mut self.no_holders,
        }
    }

    /// Allocates a slot for a node; `None` when the arena is full.
    pub(super) fn add_node(&mut self, node: Node) -> Option<SlotId> {
        self.allocate(Slot::Node(node))
    }

    /// Allocates a slot for holders, chained before `next`.
    pub(super) fn add_holder_set(&mut self, next: SlotId) -> Option<SlotId> {
        self.allocate(Slot::HolderSet(HolderSet {
            next,
            ..HolderSet::EMPTY
        }))
    }

    /// Allocates a chain of slots for the blocks of a run and returns the first; 0 for no
    /// blocks. The caller makes sure that there is room.
    pub(super) fn add_run(&mut self, run: &[u64]) -> SlotId {
        let (mut first, mut last) = (0, 0);
        for part in run.chunks(RUN) {
            let mut blocks = [0; RUN];
            blocks[..part.len()].copy_from_slice(part);
            let Some(at) = self.allocate(Slot::Run { next: 0, blocks }) else {
                break;
            };
            if let Slot::Run { next, .. } = self.slots.at_mut(last as usize) {
                *next = at;
            } else {
                first = at;
            }
            last = at;
        }
        first
    }

    /// Frees a node and the slots chained to it.
    pub(super) fn free_node(&mut self, at: SlotId) {
        let node = self.node(at);
        let (run, more_holders) = (node.run, node.more_holders);
        let (runs, holder_sets) = (run_slots(node.len.into()), holder_slots(node.held.into()));
        self.free_chain(run, runs);
        self.free_chain(more_holders, holder_sets);
        self.free_chain(at, 1);
    }

    /// Frees a chain of `count` slots in constant time.
    pub(super) fn free_chain(&mut self, at: SlotId, count: usize) {
        if at == 0 {
            return;
        }
        let next = self.next(at);
        *self.slots.at_mut(at as usize) = Slot::Free {
            next,
            chain: self.free,
        };
        self.free = at;
        self.free_count += count;
    }

    /// Frees the first slot of a chain and returns the second.
    pub(super) fn free_first(&mut self, at: SlotId) -> SlotId {
        let next = self.next(at);
        *self.slots.at_mut(at as usize) = Slot::Free {
            next: 0,
            chain: self.free,
        };
        self.free = at;
        self.free_count += 1;
        next
    }

    fn allocate(&mut self, slot: Slot) -> Option<SlotId> {
        let Slot::Free { next, chain } = *self.slots.at(self.free as usize) else {
            return self.slots.push(slot).map(|at| at as SlotId);
        };
        let at = self.free;
        self.free = if next == 0 {
            chain
        } else {
            let after = self.next(next);
            *self.slots.at_mut(next as usize) = Slot::Free { next: after, chain };
            next
        };
        self.free_count -= 1;
        *self.slots.at_mut(at as usize) = slot;
        Some(at)
    }

    fn next(&self, at: SlotId) -> SlotId {
        match self.slots.at(at as usize) {
            Slot::Node(_) => 0,
            Slot::Run { next, .. }
            | Slot::HolderSet(HolderSet { next, .. })
            | Slot::Free { next, .. } => *next,
        }
    }

    /// Free slots, counted one by one.
    #[cfg(test)]
    pub(super) fn count_free(&self) -> usize {
        let (mut count, mut first) = (0, self.free);
        while let Slot::Free { chain, .. } = *self.slots.at(first as usize) {
            let mut at = first;
            while at != 0 {
                (count, at) = (count + 1, self.next(at));
            }
            first = chain;
        }
        assert_eq!(count, self.free_count);
        count
    }
}

impl HolderSet {
    const EMPTY: Self = Self {
        next: 0,
        stamps: [0; HOLDER_SET],
        members: [0; HOLDER_SET],
    };
}

/// Slots that a run of `len` blocks needs besides its node.
pub(super) fn run_slots(len: usize) -> usize {
    len.saturating_sub(HEAD).div_ceil(RUN)
}

/// Slots that `held` holders need besides their node.
pub(super) fn holder_slots(held: usize) -> usize {
    held.saturating_sub(INLINE_HOLDERS).div_ceil(HOLDER_SET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_fills_two_cache_lines() {
        assert_eq!(size_of::<Slot>(), 128);
    }

    #[test]
    fn freed_chains_are_reused_slot_by_slot() {
        let mut arena = Arena::new(128 * 20);
        let room = arena.room();
        let one = arena.add_run(&[1; 3 * RUN]);
        let other = arena.add_run(&[2; 2 * RUN]);
        let kept = arena.add_run(&[3; RUN]);
        arena.free_chain(one, 3);
        arena.free_chain(other, 2);
        assert_eq!((arena.count_free(), arena.len()), (5, 7));
        let long = arena.add_run(&[4; 4 * RUN]);
        assert_eq!((arena.count_free(), arena.len()), (1, 7));
        assert_eq!(arena.run(kept), (&[3; RUN], 0));
        arena.free_chain(long, 4);
        arena.free_chain(kept, 1);
        assert_eq!(arena.room(), room);
        while arena.add_holder_set(0).is_some() {}
        assert_eq!((arena.room(), arena.count_free()), (0, 0));
        assert!(arena.bytes() <= 128 * 20);
    }
}
