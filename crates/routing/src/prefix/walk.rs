//! The path from the root along a prompt, as far as the tree knows it.

use super::holders::HolderPosition;
use super::ids::{BlockRange, SlotId};

/// A node on the path, and the blocks of the prompt that it covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) at: SlotId,
    pub(super) range: BlockRange,
    /// The position of the inserting worker among the node's holders.
    pub(super) position: Option<HolderPosition>,
}

/// The nodes on the path, and the number of blocks that match.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) path: Vec<Step>,
    /// Blocks of the last node beyond the match.
    pub(super) unmatched: usize,
    /// Matched blocks in all.
    pub(super) depth: usize,
}

impl Walk {
    /// Starts again at the root.
    pub(super) fn begin(&mut self) {
        self.path.clear();
        (self.unmatched, self.depth) = (0, 0);
    }

    /// Steps down to a node that covers the next `len` blocks.
    pub(super) fn enter(&mut self, at: SlotId, len: usize) {
        let start = self.path.last().map_or(0, |step| step.range.end);
        let end = start + len as u32;
        self.path.push(Step {
            at,
            range: BlockRange { start, end },
            position: None,
        });
    }

    /// The last node; the root at the beginning.
    pub(super) fn last(&self) -> SlotId {
        self.path.last().map_or(0, |step| step.at)
    }
}
