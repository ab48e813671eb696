//! What holds for every body that a client or a worker sends.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::body_fields::BodyFields;
use super::events::{EventBoundary, Start, start};
use super::refusal::refusal_in;
use crate::endpoint::INFERENCE;

/// The fields of a request body are those that a JSON parser sees, or the body is refused.
///
/// # Panics
/// If they are not.
pub fn body_fields(data: &[u8]) {
    let text = std::str::from_utf8(data).ok();
    let parsed =
        text.and_then(|text| serde_json::from_str::<HashMap<String, &RawValue>>(text).ok());
    let read = BodyFields::read(data).ok();
    assert_eq!(read.is_some(), parsed.is_some());
    let (Some(fields), Some(parsed)) = (read, parsed) else {
        return;
    };
    let raw = |name: &str| parsed.get(name).map(|value| value.get());
    let model = raw("model").and_then(|raw| serde_json::from_str::<String>(raw).ok());
    assert_eq!(fields.model.as_deref(), model.as_deref());
    assert_eq!(fields.stream, matches!(raw("stream"), Some("true" | "1")));
    let within = data.as_ptr_range();
    for row in &INFERENCE {
        for part in fields.prompt(row.prompt).parts() {
            let at = part.as_ptr_range();
            assert!(part.is_empty() || (within.start <= at.start && at.end <= within.end));
            let names = parsed.values().any(|value| value.get().as_bytes() == part);
            assert!(part.is_empty() || names, "{part:?} is no field");
        }
    }
    let _ = fields.likely_endpoint();
    fields.assert_kept_off_lane(data);
}

/// A stream of events is judged the same however it is cut. The first byte of `data` says how
/// long the pieces are.
///
/// # Panics
/// If it is not.
pub fn events(data: &[u8]) {
    let Some((&first, stream)) = data.split_first() else {
        return;
    };
    let first_event = |stream| match start(stream) {
        Start::Event(event) => Some(event),
        Start::Unfinished | Start::Silent => None,
    };
    let whole = first_event(stream);
    for end in 0..=stream.len().min(512) {
        let part = &stream[..end];
        // A carriage return may have a line feed still to come.
        let early = first_event(part).map(|event| event.strip_suffix(b"\r").unwrap_or(event));
        assert!(early.is_none_or(|early| whole.is_some_and(|whole| whole.starts_with(early))));
    }
    let _ = refusal_in(whole.unwrap_or(stream));
    let (mut at_once, mut in_pieces) = (EventBoundary::default(), EventBoundary::default());
    at_once.pass(stream);
    for piece in stream.chunks(usize::from(first) + 1) {
        in_pieces.pass(piece);
    }
    assert_eq!(at_once.accepts_event(), in_pieces.accepts_event());
    assert_eq!(at_once.is_done(), in_pieces.is_done());
}
