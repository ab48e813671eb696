//! `/v1/responses`.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{Message, render};
use super::dialect::{Dialect, ParsedRequest};
use super::events::{document, event};
use crate::engine::Prompt;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{Routing, Sampling, Text, from_json};
use crate::server::runtime::sequence::{InferenceRequest, Sequence, Usage};
use crate::server::runtime::worker::{StoredResponse, Worker, unix_seconds};

#[derive(Deserialize)]
struct ResponsesRequest<'a> {
    #[serde(borrow)]
    input: Input<'a>,
    #[serde(borrow, default)]
    instructions: Option<Text<'a>>,
    #[serde(borrow, default)]
    model: Option<Text<'a>>,
    #[serde(borrow, default)]
    previous_response_id: Option<Text<'a>>,
    #[serde(default)]
    store: Option<bool>,
    #[serde(default)]
    max_output_tokens: Option<u32>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    data_parallel_rank: Option<u32>,
    #[serde(default)]
    routed_dp_rank: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input<'a> {
    Plain(Cow<'a, str>),
    Items(#[serde(borrow)] Vec<Item<'a>>),
}

/// A message. Items of other kinds, such as tool calls, have no role and are skipped.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Item<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<Text<'a>>,
}

struct Response {
    worker: Arc<Worker>,
    model: String,
    created: u64,
    prompt: String,
    stored: bool,
    text: String, // streamed so far
    next_event: u64,
}

/// Parses a request.
pub(crate) fn parse(worker: &Arc<Worker>, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let request: ResponsesRequest<'_> = from_json(body, Shape::Nested)?;
    let message = |role: Text<'static>, content| Message {
        role,
        content: Some(content),
    };
    let named = |role| Text(Cow::Borrowed(role));
    let mut prompt = Vec::new();
    prompt.extend(
        request
            .instructions
            .map(|text| message(named("system"), text)),
    );
    match request.input {
        Input::Plain(text) => prompt.push(message(named("user"), Text(text))),
        Input::Items(items) => prompt.extend(items.into_iter().filter_map(|item| {
            Some(Message {
                role: item.role?,
                content: item.content,
            })
        })),
    }
    let before = previous_prompt(worker, request.previous_response_id.as_ref())?;
    let prompt = before + &render(&prompt);
    let rank = request.routed_dp_rank.or(request.data_parallel_rank);
    let inference = InferenceRequest {
        is_list: false,
        prompts: vec![Prompt::from_text(&prompt, worker.options.page_size)],
        sampling: vec![Sampling {
            max_new_tokens: request.max_output_tokens,
            ..Sampling::default()
        }],
        routing: Routing::new(None, rank),
        stream: request.stream == Some(true),
    };
    let response = Response {
        worker: Arc::clone(worker),
        model: worker.model_or_own(request.model),
        created: unix_seconds(),
        prompt,
        stored: request.store != Some(false),
        text: String::new(),
        next_event: 0,
    };
    Ok(ParsedRequest {
        inference,
        dialect: Box::new(response),
    })
}

/// What was said up to the response that a request goes on from.
fn previous_prompt(worker: &Worker, id: Option<&Text<'_>>) -> Result<String, ErrorResponse> {
    let Some(id) = id.map(Text::as_str) else {
        return Ok(String::new());
    };
    if !id.starts_with("resp_") {
        let why = format!("Invalid 'response_id': '{id}'. Expected an ID that begins with 'resp'.");
        return Err(ErrorResponse::bad_request(Shape::Nested, why));
    }
    let found = worker.stored_response(id).map(|stored| stored.said);
    found.ok_or_else(|| ErrorResponse::response_not_found(id))
}

fn id_of(sequence: &Sequence) -> String {
    format!("resp_{}", sequence.rid)
}

fn message(sequence: &Sequence, status: &str, content: &Value) -> Value {
    json!({
        "id": format!("msg_{}", sequence.rid), "type": "message", "role": "assistant",
        "status": status, "content": content,
    })
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

impl Response {
    fn object(&self, sequence: &Sequence, status: &str, output: &Value) -> Value {
        let usage = (status != "in_progress").then(|| {
            let Usage {
                prompt,
                completion,
                cached,
            } = Usage::of(std::slice::from_ref(sequence));
            json!({
                "input_tokens": prompt, "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": completion, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + completion,
            })
        });
        let incomplete = status == "incomplete";
        json!({
            "id": id_of(sequence), "object": "response", "created_at": self.created,
            "status": status, "model": self.model, "output": output, "usage": usage,
            "error": null, "metadata": {}, "parallel_tool_calls": true, "tool_choice": "auto",
            "tools": [],
            "incomplete_details": incomplete.then(|| json!({"reason": "max_output_tokens"})),
        })
    }

    /// The finished response, which is also stored.
    fn finished(&self, sequence: &Sequence) -> Value {
        let status = match sequence.finish_reason() {
            "length" => "incomplete",
            "abort" => "cancelled",
            _ => "completed",
        };
        let content = json!([part(&sequence.text(sequence.tokens()))]);
        let output = json!([message(sequence, "completed", &content)]);
        let object = self.object(sequence, status, &output);
        if self.stored {
            let said = format!("{}{}\n", self.prompt, sequence.text(sequence.tokens()));
            let document = document(&object);
            let response = StoredResponse { document, said };
            self.worker.store_response(id_of(sequence), response);
        }
        object
    }

    fn write_event(&mut self, out: &mut BytesMut, kind: &str, mut fields: Value) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.next_event.into();
        self.next_event += 1;
        event(out, kind, &fields);
    }
}

fn content_position(sequence: &Sequence) -> Value {
    json!({"item_id": format!("msg_{}", sequence.rid), "output_index": 0, "content_index": 0})
}

impl Dialect for Response {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        document(&sequences.first().map(|sequence| self.finished(sequence)))
    }

    fn opening(&mut self, sequences: &[Sequence], out: &mut BytesMut) {
        let Some(sequence) = sequences.first() else {
            return;
        };
        for kind in ["response.created", "response.in_progress"] {
            let object = self.object(sequence, "in_progress", &json!([]));
            self.write_event(out, kind, json!({"response": object}));
        }
        let item = message(sequence, "in_progress", &json!([]));
        self.write_event(
            out,
            "response.output_item.added",
            json!({"output_index": 0, "item": item}),
        );
        let mut added = content_position(sequence);
        added["part"] = part("");
        self.write_event(out, "response.content_part.added", added);
    }

    fn token(&mut self, sequence: &Sequence, at: u32, out: &mut BytesMut) {
        let (space, word) = sequence.piece(at);
        let mut delta = content_position(sequence);
        delta["delta"] = format!("{space}{word}").into();
        delta["logprobs"] = json!([]);
        self.text.push_str(space);
        self.text.push_str(word);
        self.write_event(out, "response.output_text.delta", delta);
    }

    fn ending(&mut self, sequence: &Sequence, _told: u32, out: &mut BytesMut) {
        let mut done = content_position(sequence);
        done["text"] = self.text.as_str().into();
        done["logprobs"] = json!([]);
        self.write_event(out, "response.output_text.done", done);
        let mut done = content_position(sequence);
        done["part"] = part(&self.text);
        self.write_event(out, "response.content_part.done", done);
        let item = message(sequence, "completed", &json!([part(&self.text)]));
        self.write_event(
            out,
            "response.output_item.done",
            json!({"output_index": 0, "item": item}),
        );
    }

    fn closing(&mut self, sequences: &[Sequence], out: &mut BytesMut) {
        let Some(sequence) = sequences.first() else {
            return;
        };
        let object = self.finished(sequence);
        let kind = match sequence.finish_reason() {
            "length" => "response.incomplete",
            _ => "response.completed",
        };
        self.write_event(out, kind, json!({"response": object}));
    }
}
