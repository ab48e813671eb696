//! JSON documents and server-sent events.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

/// JSON bytes.
pub(super) fn document(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// `data: <json>` and the blank line.
pub(super) fn data(out: &mut BytesMut, value: &impl Serialize) {
    out.put_slice(b"data: ");
    out.put_slice(&serde_json::to_vec(value).unwrap_or_default());
    out.put_slice(b"\n\n");
}

/// A named event of the Responses and Messages APIs.
pub(super) fn event(out: &mut BytesMut, name: &str, value: &impl Serialize) {
    out.put_slice(b"event: ");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\n");
    data(out, value);
}

/// The event that ends an OpenAI stream.
pub(super) fn done(out: &mut BytesMut) {
    out.put_slice(b"data: [DONE]\n\n");
}
