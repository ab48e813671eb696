//! The contract of an API's dialect.

use bytes::{Bytes, BytesMut};

use crate::server::runtime::sequence::{Ask, Sequence};

/// An API's wording of an answer.
pub(crate) trait Dialect: Send + Sync {
    /// The answer as one JSON document.
    fn document(&mut self, reply: &[Sequence]) -> Bytes;

    /// Events before the first token.
    fn opening(&mut self, _reply: &[Sequence], _out: &mut BytesMut) {}

    /// The event of token `at`.
    fn token(&mut self, _sequence: &Sequence, _at: u32, _out: &mut BytesMut) {}

    /// The event of a sequence's end, after `told` tokens.
    fn ending(&mut self, _sequence: &Sequence, _told: u32, _out: &mut BytesMut) {}

    /// Events after all sequences have ended.
    fn closing(&mut self, _reply: &[Sequence], _out: &mut BytesMut) {}
}

/// A request understood: what to compute and how to tell it.
pub(crate) type Understood = (Ask, Box<dyn Dialect>);
