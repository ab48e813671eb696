//! Server-sent events, one per token, as the tokens come.

use std::fmt::{self, Debug};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use crate::server::dialect::dialect::Dialect;
use crate::server::runtime::sequence::Sequence;

/// Room taken at once for events to come.
const SLAB: usize = 8 * 1024;

/// A streamed answer: what its sequences have made so far, told in a dialect.
pub(crate) struct TokenStream {
    sequences: Vec<Sequence>,
    told: Vec<Told>,
    dialect: Box<dyn Dialect>,
    turn: usize,
    stage: Stage,
    slab: BytesMut,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    tokens: u32,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Tokens,
    Done,
}

impl Debug for TokenStream {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = to.debug_struct("TokenStream");
        shown
            .field("sequences", &self.sequences.len())
            .field("stage", &self.stage);
        shown.finish_non_exhaustive()
    }
}

impl TokenStream {
    pub(crate) fn new(sequences: Vec<Sequence>, dialect: Box<dyn Dialect>) -> Self {
        Self {
            told: vec![Told::default(); sequences.len()],
            sequences,
            dialect,
            turn: 0,
            stage: Stage::Opening,
            slab: BytesMut::new(),
        }
    }

    /// The next event's bytes; `None` after the last.
    pub(crate) fn poll_event(&mut self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if self.stage == Stage::Done {
                return Poll::Ready(None);
            }
            if self.told.iter().all(|told| told.ended) {
                self.stage = Stage::Done;
                self.dialect.closing(&self.sequences, &mut self.slab);
            } else if !self.tell_next() {
                if self.poll_progress(cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            if !self.slab.is_empty() {
                let event = self.slab.split().freeze();
                return Poll::Ready(Some(event));
            }
        }
    }

    /// Tells one token or one end, sequences in turn; false if all known is told.
    fn tell_next(&mut self) -> bool {
        let count = self.sequences.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            let (sequence, told) = (&self.sequences[at], &mut self.told[at]);
            let more = told.tokens < sequence.tokens();
            if !more && (told.ended || !sequence.is_over()) {
                continue;
            }
            self.turn = at + 1;
            if self.slab.capacity() < SLAB / 4 {
                self.slab.reserve(SLAB);
            }
            if self.stage == Stage::Opening {
                self.stage = Stage::Tokens;
                self.dialect.opening(&self.sequences, &mut self.slab);
            }
            if more {
                self.dialect.token(sequence, told.tokens, &mut self.slab);
                told.tokens += 1;
            } else {
                self.dialect.ending(sequence, told.tokens, &mut self.slab);
                told.ended = true;
            }
            return true;
        }
        false
    }

    fn poll_progress(&mut self, cx: &Context<'_>) -> Poll<()> {
        let mut any = Poll::Pending;
        for sequence in self
            .sequences
            .iter_mut()
            .filter(|sequence| !sequence.is_over())
        {
            if sequence.submission.poll_progress(cx).is_ready() {
                any = Poll::Ready(());
            }
        }
        any
    }
}
