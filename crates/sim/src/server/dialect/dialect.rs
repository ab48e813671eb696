//! The interface of an API's dialect.

use bytes::{Bytes, BytesMut};
use http::HeaderValue;

use crate::server::http::error_response::JSON;
use crate::server::runtime::sequence::{InferenceRequest, Sequence};

/// Content type of server-sent events.
pub(crate) const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// Writes the responses of one API.
pub(crate) trait Dialect: Send + Sync {
    /// The whole response as one JSON document.
    fn document(&mut self, sequences: &[Sequence]) -> Bytes;

    /// Content type of that document.
    fn document_type(&self) -> HeaderValue {
        JSON
    }

    /// Content type of a stream.
    fn stream_type(&self) -> HeaderValue {
        EVENTS
    }

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
