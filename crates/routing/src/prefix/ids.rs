//! The numbers by which the index knows slots, workers, times and blocks.

/// A slot of the arena. 0 is the root node; elsewhere it stands for "no slot".
pub(super) type SlotId = u32;
/// A worker within the index. Two bytes each, so that many fit into a slot.
pub(super) type MemberId = u16;
/// The time of a use, on the clock of the worker that used it.
pub(super) type Stamp = u32;

/// Whether one time comes before another, which is less than half of all times away.
pub(super) fn is_before(one: Stamp, other: Stamp) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// The blocks of a prompt from `start` up to `end`, which is excluded.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRange {
    pub(super) start: u32,
    pub(super) end: u32,
}
