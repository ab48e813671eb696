//! A node of the tree: where it stands, the beginning of its run, its first holders.

use super::arena::SlotId;

/// A worker's number within the index.
pub(super) type MemberId = u16;
/// When a worker last used a node, on the worker's own clock.
pub(super) type Stamp = u32;

/// Blocks kept in the node itself.
pub(super) const HEAD: usize = 8;
/// Holders kept in the node itself.
pub(super) const INLINE_HOLDERS: usize = 4;

/// A run of blocks that always occur together, and who has them. In an order that keeps what
/// a walk reads first on one cache line.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(super) struct Node {
    pub(super) parent: SlotId,
    /// Next node in the same bucket of the child table.
    pub(super) chained: SlotId,
    pub(super) children: u32,
    /// Neighbours in order of use. A node is always used after its children, so the oldest
    /// one is a leaf.
    pub(super) newer: SlotId,
    pub(super) older: SlotId,
    /// Where the run goes on.
    pub(super) run: SlotId,
    /// Where the holders go on.
    pub(super) more: SlotId,
    /// Blocks of the run.
    pub(super) len: u16,
    /// Holders in all.
    pub(super) held: u16,
    pub(super) blocks: [u64; HEAD],
    pub(super) stamps: [Stamp; INLINE_HOLDERS],
    pub(super) members: [MemberId; INLINE_HOLDERS],
}
