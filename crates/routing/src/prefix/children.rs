//! The child table: finds a node by its parent and its first block.

use super::arena::Arena;
use super::ids::SlotId;
use super::segments::Segments;

/// 65 536 buckets per segment: 256 KiB.
type Buckets = Segments<SlotId, 16>;

#[derive(Debug)]
pub(super) struct Children {
    /// The first node of each bucket; the others are chained. The length is a power of two.
    buckets: Buckets,
}

impl Children {
    /// A table sized for about `nodes` nodes.
    pub(super) fn new(nodes: usize) -> Self {
        let buckets = (nodes / 2).next_power_of_two().clamp(16, 1 << 31);
        Self {
            buckets: Buckets::zeros(buckets),
        }
    }

    /// Bytes of the table; the whole of it counts from the start.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.bytes()
    }

    /// The child of `parent` whose run begins with the block `first`.
    pub(super) fn find(&self, arena: &Arena, parent: SlotId, first: u64) -> Option<SlotId> {
        let mut at = *self.buckets.at(self.bucket(parent, first));
        while at != 0 {
            let node = arena.node(at);
            if node.parent == parent && node.blocks[0] == first {
                return Some(at);
            }
            at = node.next_in_bucket;
        }
        None
    }

    /// Adds a node under its parent and first block.
    pub(super) fn insert(&mut self, arena: &mut Arena, at: SlotId) {
        let node = arena.node(at);
        let bucket = self.bucket(node.parent, node.blocks[0]);
        let first = self.buckets.at_mut(bucket);
        arena.node_mut(at).next_in_bucket = *first;
        *first = at;
    }

    /// Removes a node; its parent and first block must not have changed since it was added.
    pub(super) fn remove(&mut self, arena: &mut Arena, at: SlotId) {
        let node = arena.node(at);
        let (bucket, next) = (
            self.bucket(node.parent, node.blocks[0]),
            node.next_in_bucket,
        );
        let first = self.buckets.at_mut(bucket);
        if *first == at {
            *first = next;
            return;
        }
        let mut before = *first;
        while before != 0 {
            let after = arena.node(before).next_in_bucket;
            if after == at {
                arena.node_mut(before).next_in_bucket = next;
                return;
            }
            before = after;
        }
    }

    fn bucket(&self, parent: SlotId, first: u64) -> usize {
        let mixed = (first ^ u64::from(parent).wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(29);
        mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) as usize >> 20 & (self.buckets.len() - 1)
    }
}
