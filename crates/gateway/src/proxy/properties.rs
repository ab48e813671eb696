//! What holds for every body that a client or a worker sends.

use std::collections::HashMap;

use routing::MediaTokens;
use routing::prefix::hash_blocks;
use serde_json::value::RawValue;

use super::body_fields::BodyFields;
use super::events::{EventBoundary, Start, start};
use super::refusal::refusal_in;
use crate::endpoint::{INFERENCE, PromptField};

/// The fields of a request body are those that a JSON parser sees, and its prompt is part of it.
///
/// # Panics
/// If they are not.
pub fn body_fields(data: &[u8]) {
    let text = std::str::from_utf8(data).ok();
    let parsed =
        text.and_then(|text| serde_json::from_str::<HashMap<String, &RawValue>>(text).ok());
    let Ok(fields) = BodyFields::read(data) else {
        assert!(parsed.is_none() || nesting(data) > 1000);
        return;
    };
    for row in &INFERENCE {
        let prompt = fields.prompt(row.prompt, MediaTokens::default());
        let length: usize = prompt.pieces().map(<[u8]>::len).sum();
        assert_eq!(length as u64, prompt.bytes());
        hash_blocks(&prompt, &mut Vec::new());
        let stripped = fields.without_billing_header(row.prompt).concat();
        let left = BodyFields::read(&stripped);
        assert!(left.is_ok_and(|left| left.model == fields.model));
    }
    let _ = fields.likely_endpoint();
    let Some(parsed) = parsed else {
        assert!(is_lenient(data), "{}", String::from_utf8_lossy(data));
        return;
    };
    let raw = |name: &str| parsed.get(name).map(|value| value.get());
    let model = raw("model").and_then(|raw| serde_json::from_str::<String>(raw).ok());
    assert_eq!(fields.model.as_deref(), model.as_deref());
    assert_eq!(fields.stream, matches!(raw("stream"), Some("true" | "1")));
    for (field, name) in [
        (PromptField::Messages, "messages"),
        (PromptField::Text, "text"),
        (PromptField::System, "system"),
        (PromptField::InputIds, "input_ids"),
    ] {
        let raw = raw(name).filter(|raw| *raw != "null").unwrap_or_default();
        assert_eq!(fields.raw_json(field), raw.as_bytes());
    }
}

/// The deepest that brackets can nest.
fn nesting(data: &[u8]) -> usize {
    data.iter().filter(|byte| b"[{".contains(byte)).count()
}

/// Something that Python's parser takes beyond the standard.
fn is_lenient(data: &[u8]) -> bool {
    let has = |what: &[u8]| data.windows(what.len()).any(|window| window == what);
    let extras: [&[u8]; 5] = [b"\xef\xbb\xbf", b"\xed", b"NaN", b"Infinity", b"\\u"];
    extras.into_iter().any(has)
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
