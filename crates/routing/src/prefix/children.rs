//! The child table: a node by its parent and its first block, chained through the nodes.

use super::arena::{Arena, SlotId};
use super::segments::Segments;

/// 65 536 buckets: 256 KiB.
type Buckets = Segments<SlotId, 16>;

#[derive(Debug)]
pub(super) struct Children {
    /// First node of each bucket; a power of two long.
    buckets: Buckets,
}

impl Children {
    /// For about so many nodes.
    pub(super) fn new(nodes: usize) -> Self {
        let buckets = (nodes / 2).next_power_of_two().clamp(16, 1 << 31);
        Self {
            buckets: Buckets::zeros(buckets),
        }
    }

    /// Bytes of the table, all of them counted from the start.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.bytes()
    }

    /// The child of `parent` that begins with this block.
    pub(super) fn find(&self, arena: &Arena, parent: SlotId, first: u64) -> Option<SlotId> {
        let mut at = *self.buckets.at(self.bucket(parent, first));
        while at != 0 {
            let node = arena.node(at);
            if node.parent == parent && node.blocks[0] == first {
                return Some(at);
            }
            at = node.chained;
        }
        None
    }

    /// Takes a node in, by its parent and first block.
    pub(super) fn insert(&mut self, arena: &mut Arena, at: SlotId) {
        let node = arena.node(at);
        let bucket = self.bucket(node.parent, node.blocks[0]);
        let first = self.buckets.at_mut(bucket);
        arena.node_mut(at).chained = *first;
        *first = at;
    }

    /// Takes a node out again; its parent and first block must be what they were.
    pub(super) fn remove(&mut self, arena: &mut Arena, at: SlotId) {
        let node = arena.node(at);
        let (bucket, next) = (self.bucket(node.parent, node.blocks[0]), node.chained);
        let first = self.buckets.at_mut(bucket);
        if *first == at {
            *first = next;
            return;
        }
        let mut before = *first;
        while before != 0 {
            let chained = arena.node(before).chained;
            if chained == at {
                arena.node_mut(before).chained = next;
                return;
            }
            before = chained;
        }
    }

    fn bucket(&self, parent: SlotId, first: u64) -> usize {
        let mixed = (first ^ u64::from(parent).wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(29);
        mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) as usize >> 20 & (self.buckets.len() - 1)
    }
}
