//! The interface of an API's dialect.

use bytes::{Bytes, BytesMut};

use crate::server::runtime::sequence::{InferenceRequest, Sequence};

/// Writes the responses of one API.
pub(crate) trait Dialect: Send + Sync {
    /// The whole response as one JSON document.
    fn document(&mut self, sequences: &[Sequence]) -> Bytes;

    /// Events before the first token.
    fn opening(&mut self, _sequences: &[Sequence], _out: &mut BytesMut) {}

    /// The event of token `at`.
    fn token(&mut self, _sequence: &Sequence, _at: u32, _out: &mut BytesMut) {}

    /// The event of a sequence's end, after `sent` tokens.
    fn ending(&mut self, _sequence: &Sequence, _sent: u32, _out: &mut BytesMut) {}

    /// Events after all sequences have ended.
    fn closing(&mut self, _sequences: &[Sequence], _out: &mut BytesMut) {}
}

/// A parsed request: its work for the engine, and the dialect of its response.
pub(crate) struct ParsedRequest {
    pub(crate) inference: InferenceRequest,
    pub(crate) dialect: Box<dyn Dialect>,
}
