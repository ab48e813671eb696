//! Server-sent events, one per token, sent as the tokens are generated.

use std::fmt::{self, Debug};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use crate::server::dialect::dialect::Dialect;
use crate::server::runtime::sequence::Sequence;

/// Bytes of a buffer for further events.
const BUFFER: usize = 8 * 1024;

/// A streamed response: the tokens of its sequences, written in a dialect.
pub(crate) struct TokenStream {
    sequences: Vec<Sequence>,
    sent: Vec<Sent>,
    dialect: Box<dyn Dialect>,
    next: usize,
    stage: Stage,
    buffer: BytesMut,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sent {
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
            sent: vec![Sent::default(); sequences.len()],
            sequences,
            dialect,
            next: 0,
            stage: Stage::Opening,
            buffer: BytesMut::new(),
        }
    }

    /// The next event's bytes; `None` after the last.
    pub(crate) fn poll_event(&mut self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if self.stage == Stage::Done {
                return Poll::Ready(None);
            }
            if self.sent.iter().all(|sent| sent.ended) {
                self.stage = Stage::Done;
                self.dialect.closing(&self.sequences, &mut self.buffer);
            } else if !self.write_next() {
                if self.poll_progress(cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            if !self.buffer.is_empty() {
                let event = self.buffer.split().freeze();
                return Poll::Ready(Some(event));
            }
        }
    }

    /// Writes one token or one end, sequences in turn; false if nothing is left to write.
    fn write_next(&mut self) -> bool {
        let count = self.sequences.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            let (sequence, sent) = (&self.sequences[at], &mut self.sent[at]);
            let more = sent.tokens < sequence.tokens();
            if !more && (sent.ended || !sequence.has_ended()) {
                continue;
            }
            self.next = at + 1;
            if self.buffer.capacity() < BUFFER / 4 {
                self.buffer.reserve(BUFFER);
            }
            if self.stage == Stage::Opening {
                self.stage = Stage::Tokens;
                self.dialect.opening(&self.sequences, &mut self.buffer);
            }
            if more {
                self.dialect.token(sequence, sent.tokens, &mut self.buffer);
                sent.tokens += 1;
            } else {
                self.dialect.ending(sequence, sent.tokens, &mut self.buffer);
                sent.ended = true;
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
            .filter(|sequence| !sequence.has_ended())
        {
            if sequence.submission.poll_progress(cx).is_ready() {
                any = Poll::Ready(());
            }
        }
        any
    }
}
