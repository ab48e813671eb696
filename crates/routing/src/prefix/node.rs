//! A node of the tree: its links, the first blocks of its run, its first holders.

use super::ids::{MemberId, SlotId, Stamp};

/// Blocks kept in the node itself.
pub(super) const HEAD: usize = 8;
/// Holders kept in the node itself.
pub(super) const INLINE_HOLDERS: usize = 4;

/// A run of blocks that always occur together, and the workers that hold them.
///
/// The fields a walk reads first come first, so that they share one cache line.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(super) struct Node {
    pub(super) parent: SlotId,
    /// The next node in the same bucket of the child table.
    pub(super) next_in_bucket: SlotId,
    pub(super) children: u32,
    /// The neighbours in order of use. A node is always touched after its children, so the
    /// oldest node is a leaf.
    pub(super) newer: SlotId,
    pub(super) older: SlotId,
    /// The first slot with further blocks of the run.
    pub(super) run: SlotId,
    /// The first slot with further holders.
    pub(super) more_holders: SlotId,
    /// Blocks of the run.
    pub(super) len: u16,
    /// Holders in all.
    pub(super) held: u16,
    pub(super) blocks: [u64; HEAD],
    pub(super) stamps: [Stamp; INLINE_HOLDERS],
    pub(super) members: [MemberId; INLINE_HOLDERS],
}
