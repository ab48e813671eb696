//! The index's memory: slots of one size, for whatever the tree is made of.
//!
//! Every slot fits every purpose, so nothing fragments, freeing and allocating take constant
//! time however long a chain is, and what is in use is known exactly. The general allocator
//! would tidy up after hundreds of thousands of freed runs at moments of its own choosing.

use super::node::{HEAD, INLINE_HOLDERS, MemberId, Node, Stamp};
use super::segments::Segments;

/// A slot's number; 0 is the root, and also "none".
pub(super) type SlotId = u32;

/// Blocks in a slot that continues a run.
pub(super) const RUN: usize = 15;
/// Holders in a slot that continues a set of them.
pub(super) const HOLDER_SET: usize = 20;

/// What a slot holds. Slots other than nodes are chained by `next`.
#[derive(Debug)]
#[repr(align(64))]
enum Slot {
    Node(Node),
    Run {
        next: SlotId,
        blocks: [u64; RUN],
    },
    HolderSet(HolderSet),
    /// The first of a chain of free slots, and the first of the next such chain.
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

/// 2 048 slots of 128 bytes: 256 KiB.
type Slots = Segments<Slot, 11>;

#[derive(Debug)]
pub(super) struct Arena {
    slots: Slots,
    free: SlotId,
    free_count: usize,
    /// What a number gets that is not a node's; there is none.
    nowhere: Node,
    no_crowd: HolderSet,
}

impl Arena {
    /// At most `budget` bytes; the root is there, whatever the budget.
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
            nowhere: Node::default(),
            no_crowd: HolderSet::EMPTY,
        }
    }

    /// Slots that would fit into so many bytes.
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

    /// Slots that can be had.
    pub(super) fn room(&self) -> usize {
        self.slots.room() + self.free_count
    }

    /// The node in a slot.
    pub(super) fn node(&self, at: SlotId) -> &Node {
        self.find_node(at as usize).unwrap_or(&self.nowhere)
    }

    /// The same, to be changed.
    pub(super) fn node_mut(&mut self, at: SlotId) -> &mut Node {
        match self.slots.at_mut(at as usize) {
            Slot::Node(node) => node,
            _ => &mut self.nowhere,
        }
    }

    /// The node in a slot, if there is one.
    pub(super) fn find_node(&self, at: usize) -> Option<&Node> {
        match self.slots.at(at) {
            Slot::Node(node) => Some(node),
            _ => None,
        }
    }

    /// The blocks in a slot that continues a run, and where they go on.
    pub(super) fn run(&self, at: SlotId) -> (&[u64; RUN], SlotId) {
        match self.slots.at(at as usize) {
            Slot::Run { next, blocks } => (blocks, *next),
            _ => (&[0; RUN], 0),
        }
    }

    /// The holders in a slot that continues a set of them.
    pub(super) fn holder_set(&self, at: SlotId) -> &HolderSet {
        match self.slots.at(at as usize) {
            Slot::HolderSet(holder_set) => holder_set,
            _ => &self.no_crowd,
        }
    }

    /// The same, to be changed.
    pub(super) fn holder_set_mut(&mut self, at: SlotId) -> &mut HolderSet {
        match self.slots.at_mut(at as usize) {
            Slot::HolderSet(holder_set) => holder_set,
            _ => &mut self.no_crowd,
        }
    }

    /// A slot for a node; `None` when there is no room.
    pub(super) fn add_node(&mut self, node: Node) -> Option<SlotId> {
        self.take(Slot::Node(node))
    }

    /// A slot for holders, chained before `next`.
    pub(super) fn add_holder_set(&mut self, next: SlotId) -> Option<SlotId> {
        self.take(Slot::HolderSet(HolderSet {
            next,
            ..HolderSet::EMPTY
        }))
    }

    /// Slots for the blocks of a run, chained; 0 for none. There must be room.
    pub(super) fn add_run(&mut self, run: &[u64]) -> SlotId {
        let (mut first, mut last) = (0, 0);
        for part in run.chunks(RUN) {
            let mut blocks = [0; RUN];
            blocks[..part.len()].copy_from_slice(part);
            let Some(at) = self.take(Slot::Run { next: 0, blocks }) else {
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

    /// Frees a node with all that is chained to it.
    pub(super) fn free_node(&mut self, at: SlotId) {
        let node = self.node(at);
        let (run, more) = (node.run, node.more);
        let (runs, crowds) = (runs(node.len.into()), crowds(node.held.into()));
        self.free_chain(run, runs);
        self.free_chain(more, crowds);
        self.free_chain(at, 1);
    }

    /// Frees a chain of `count` slots.
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

    /// Frees the first slot of a chain; tells the second.
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

    fn take(&mut self, slot: Slot) -> Option<SlotId> {
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

/// Slots that a run of so many blocks needs besides its node.
pub(super) fn runs(len: usize) -> usize {
    len.saturating_sub(HEAD).div_ceil(RUN)
}

/// Slots that so many holders need besides their node.
pub(super) fn crowds(held: usize) -> usize {
    held.saturating_sub(INLINE_HOLDERS).div_ceil(HOLDER_SET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_two_cache_lines() {
        assert_eq!(size_of::<Slot>(), 128);
    }

    #[test]
    fn chains_are_freed_whole_and_reused_slot_by_slot() {
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
