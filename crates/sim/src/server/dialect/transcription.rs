//! `/v1/audio/transcriptions`: the text of a simulated transcript says what came.

use bytes::Bytes;
use http::HeaderValue;
use serde_json::json;

use super::dialect::{Dialect, ParsedRequest};
use super::events::document;
use crate::engine::Prompt;
use crate::server::http::error_response::{ErrorResponse, JSON, Shape};
use crate::server::parse::{Routing, Sampling, parts};
use crate::server::runtime::sequence::{InferenceRequest, Sequence};
use crate::server::runtime::worker::Worker;

/// Bytes of audio that count as a second: 16 kHz, 16 bit, one channel.
const BYTES_PER_SECOND: usize = 32_000;
/// Bytes of audio that count as a token.
const BYTES_PER_AUDIO_TOKEN: usize = 1280;

struct Transcription {
    text: String,
    seconds: usize,
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Text,
    Verbose,
}

/// Parses a form.
pub(crate) fn parse(
    worker: &Worker,
    content_type: &str,
    body: &[u8],
) -> Result<ParsedRequest, ErrorResponse> {
    let missing = || ErrorResponse::bad_request(Shape::Flat, "file: field required");
    let parts = parts(content_type, body).ok_or_else(missing)?;
    let part = |name| parts.iter().find(|part| part.name == name);
    let file = part("file").ok_or_else(missing)?;
    let format = match part("response_format").map(|part| part.content) {
        None | Some(b"json") => Format::Json,
        Some(b"text") => Format::Text,
        Some(b"verbose_json") => Format::Verbose,
        Some(_) => {
            let why = "Only 'json', 'text', and 'verbose_json' formats supported";
            return Err(ErrorResponse::bad_request(Shape::Nested, why));
        }
    };
    let size = file.content.len();
    let name = file.file_name.unwrap_or("file");
    let ids: Vec<u32> = file
        .content
        .chunks(BYTES_PER_AUDIO_TOKEN)
        .map(|piece| piece.iter().map(|byte| u32::from(*byte)).sum())
        .collect();
    let inference = InferenceRequest {
        is_list: false,
        prompts: vec![Prompt::from_ids(&ids, worker.options.page_size)],
        sampling: vec![Sampling {
            max_new_tokens: Some(0),
            ..Sampling::default()
        }],
        routing: Routing::default(),
        stream: false,
    };
    let dialect = Box::new(Transcription {
        text: format!("{name}: {size} bytes"),
        seconds: size.div_ceil(BYTES_PER_SECOND),
        format,
    });
    Ok(ParsedRequest { inference, dialect })
}

impl Dialect for Transcription {
    fn document(&mut self, _sequences: &[Sequence]) -> Bytes {
        let (text, seconds) = (&self.text, self.seconds);
        let usage = json!({"type": "duration", "seconds": seconds});
        match self.format {
            Format::Text => text.clone().into(),
            Format::Json => document(&json!({"text": text, "usage": usage})),
            Format::Verbose => document(&json!({
                "task": "transcribe", "language": null, "duration": seconds, "text": text,
                "segments": [{"id": 0, "start": 0.0, "end": seconds, "text": text}], "usage": usage,
            })),
        }
    }

    fn document_type(&self) -> HeaderValue {
        match self.format {
            Format::Text => HeaderValue::from_static("text/plain; charset=utf-8"),
            Format::Json | Format::Verbose => JSON,
        }
    }
}
