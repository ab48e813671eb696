//! A forward pass over prompts.

use super::costs::{PassWork, Picos};
use super::sequence::Sequence;
use crate::engine::request::RequestId;

/// A prompt that is computed up to a token.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) sequence: Sequence,
    /// Leading tokens that are in memory.
    pub(super) done: u32,
    /// Those of them that the next pass has to load from the host.
    pub(super) loaded: u32,
}

/// A pass: prompts that it completes, and perhaps a part of one more.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) ready: Vec<Sequence>,
    pub(super) work: PassWork,
    /// Output of the admitted requests that the engine reckons with.
    pub(super) reserved: u64,
    /// The batch decodes with it.
    pub(super) decodes: bool,
    pub(super) ends: Picos,
    room: u32,
}

impl Pass {
    /// A pass over at most `room` tokens.
    pub(super) fn new(room: u32) -> Self {
        Self {
            ready: Vec::new(),
            work: PassWork::default(),
            reserved: 0,
            decodes: false,
            ends: 0,
            room,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.room > 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.work.tokens == 0
    }

    /// Sequences that it completes.
    pub(super) fn len(&self) -> usize {
        self.ready.len()
    }

    /// Adds as much of a prompt as there is room for; what is left is returned.
    pub(super) fn add(&mut self, mut chunk: Chunk) -> Option<Chunk> {
        let left = chunk.sequence.context() - chunk.done;
        let taken = left.min(self.room);
        self.room -= taken;
        let (before, new) = (u64::from(chunk.done), u64::from(taken));
        self.work.tokens += new;
        self.work.pairs += new * before + new * (new + 1) / 2;
        self.work.loaded += u64::from(std::mem::take(&mut chunk.loaded));
        chunk.done += taken;
        if taken < left {
            return Some(chunk);
        }
        self.ready.push(chunk.sequence);
        None
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Sequence> {
        let position = self.ready.iter().position(|ready| ready.id == id)?;
        Some(self.ready.remove(position))
    }
}
