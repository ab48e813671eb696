//! From the root down along a prompt, as far as it is known.

use super::arena::SlotId;
use super::holders::HolderPosition;

/// A node on the way, and which blocks of the prompt it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) at: SlotId,
    pub(super) start: u32,
    pub(super) end: u32,
    /// Where the worker in question stands among its holders.
    pub(super) place: Option<HolderPosition>,
}

/// Where a walk ended: the nodes on the way, and how many blocks of the last one match.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) path: Vec<Step>,
    /// Blocks of the last node beyond the match.
    pub(super) unmatched: usize,
    /// Blocks matched in all.
    pub(super) depth: usize,
}

impl Walk {
    /// At the root.
    pub(super) fn begin(&mut self) {
        self.path.clear();
        (self.unmatched, self.depth) = (0, 0);
    }

    /// One node further, which has `len` blocks from here on.
    pub(super) fn enter(&mut self, at: SlotId, len: usize) {
        let start = self.path.last().map_or(0, |step| step.end);
        self.path.push(Step {
            at,
            start,
            end: start + len as u32,
            place: None,
        });
    }

    /// The last node; the root at the beginning.
    pub(super) fn last(&self) -> SlotId {
        self.path.last().map_or(0, |step| step.at)
    }
}
