//! `/v1/messages`, the Anthropic API.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{Message, render};
use super::dialect::{Dialect, ParsedRequest};
use super::events::{document, event};
use crate::engine::Prompt;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{OneOrMany, Routing, Sampling, Text, from_json};
use crate::server::runtime::sequence::{InferenceRequest, Sequence, Usage};
use crate::server::runtime::worker::Worker;

#[derive(Deserialize)]
struct MessagesRequest<'a> {
    max_tokens: u32,
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    #[serde(borrow, default)]
    system: Option<Text<'a>>,
    #[serde(borrow, default)]
    model: Option<Text<'a>>,
    #[serde(default)]
    stop_sequences: Option<Vec<String>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    data_parallel_rank: Option<u32>,
    #[serde(default)]
    routed_dp_rank: Option<u32>,
}

struct Messages {
    model: String,
}

/// Parses a request.
pub(crate) fn parse(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let request: MessagesRequest<'_> = from_json(body, Shape::Anthropic)?;
    if request.messages.is_empty() {
        return Err(ErrorResponse::bad_request(
            Shape::Anthropic,
            "messages: must not be empty",
        ));
    }
    let prompt = prompt_of(request.system, &request.messages);
    let rank = request.routed_dp_rank.or(request.data_parallel_rank);
    let sampling = Sampling {
        max_new_tokens: Some(request.max_tokens),
        stop: request.stop_sequences.map(OneOrMany::Many),
        ..Sampling::default()
    };
    let inference = InferenceRequest {
        is_list: false,
        prompts: vec![Prompt::from_text(&prompt, worker.options.page_size)],
        sampling: vec![sampling],
        routing: Routing::new(None, rank),
        stream: request.stream == Some(true),
    };
    let model = worker.model_or_own(request.model);
    Ok(ParsedRequest {
        inference,
        dialect: Box::new(Messages { model }),
    })
}

#[derive(Deserialize)]
struct CountRequest<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    #[serde(borrow, default)]
    system: Option<Text<'a>>,
}

/// Tokens of the prompt in a request for `/v1/messages/count_tokens`.
pub(crate) fn count_tokens(body: &[u8]) -> Result<u32, ErrorResponse> {
    let request: CountRequest<'_> = from_json(body, Shape::Anthropic)?;
    let prompt = prompt_of(request.system, &request.messages);
    Ok(Prompt::from_text(&prompt, 1).tokens())
}

/// The system's message and the others.
fn prompt_of(system: Option<Text<'_>>, messages: &[Message<'_>]) -> String {
    let system = system.map(|text| Message {
        role: Text(Cow::Borrowed("system")),
        content: Some(text),
    });
    render(system.iter().chain(messages))
}

/// Stop reason and stop string of this API.
fn stop_of(sequence: &Sequence) -> Value {
    let matched = sequence.finish_object()["matched"].clone();
    match sequence.finish_reason() {
        "length" => json!({"stop_reason": "max_tokens", "stop_sequence": null}),
        _ if matched.is_string() => {
            json!({"stop_reason": "stop_sequence", "stop_sequence": matched})
        }
        _ => json!({"stop_reason": "end_turn", "stop_sequence": null}),
    }
}

impl Messages {
    fn object(&self, sequence: &Sequence, content: &Value) -> Value {
        let Usage {
            prompt,
            completion,
            cached,
        } = Usage::of(std::slice::from_ref(sequence));
        json!({
            "id": format!("msg_{}", sequence.rid), "type": "message", "role": "assistant",
            "model": self.model, "content": content, "stop_reason": null, "stop_sequence": null,
            "usage": {
                "input_tokens": prompt, "output_tokens": completion,
                "cache_read_input_tokens": cached,
            },
        })
    }
}

impl Dialect for Messages {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        let Some(sequence) = sequences.first() else {
            return Bytes::new();
        };
        let text = sequence.text(sequence.tokens());
        let mut object = self.object(sequence, &json!([{"type": "text", "text": text}]));
        let stop = stop_of(sequence);
        object["stop_reason"] = stop["stop_reason"].clone();
        object["stop_sequence"] = stop["stop_sequence"].clone();
        document(&object)
    }

    fn opening(&mut self, sequences: &[Sequence], out: &mut BytesMut) {
        let Some(sequence) = sequences.first() else {
            return;
        };
        let message = self.object(sequence, &json!([]));
        event(
            out,
            "message_start",
            &json!({"type": "message_start", "message": message}),
        );
        let block = json!({"type": "text", "text": ""});
        let start = json!({"type": "content_block_start", "index": 0, "content_block": block});
        event(out, "content_block_start", &start);
    }

    fn token(&mut self, sequence: &Sequence, at: u32, out: &mut BytesMut) {
        let (space, word) = sequence.piece(at);
        let delta = json!({"type": "text_delta", "text": format!("{space}{word}")});
        let fields = json!({"type": "content_block_delta", "index": 0, "delta": delta});
        event(out, "content_block_delta", &fields);
    }

    fn ending(&mut self, sequence: &Sequence, sent: u32, out: &mut BytesMut) {
        let stop = json!({"type": "content_block_stop", "index": 0});
        event(out, "content_block_stop", &stop);
        let fields = json!({
            "type": "message_delta", "delta": stop_of(sequence), "usage": {"output_tokens": sent},
        });
        event(out, "message_delta", &fields);
    }

    fn closing(&mut self, _reply: &[Sequence], out: &mut BytesMut) {
        event(out, "message_stop", &json!({"type": "message_stop"}));
    }
}
