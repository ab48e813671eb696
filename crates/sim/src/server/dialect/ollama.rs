//! `/api/chat` and `/api/generate`, the Ollama API: a line of JSON per token.

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{Message, render};
use super::dialect::{Dialect, ParsedRequest};
use super::events::document;
use super::timestamp;
use crate::engine::Prompt;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{OneOrMany, Routing, Sampling, Text, from_json};
use crate::server::runtime::sequence::{InferenceRequest, Sequence, Usage};
use crate::server::runtime::worker::Worker;

/// SGLang's default for this API.
const DEFAULT_PREDICT: u32 = 2048;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    num_predict: Option<u32>,
    stop: Option<OneOrMany<String>>,
}

#[derive(Deserialize)]
struct ChatRequest<'a> {
    #[serde(borrow, rename = "model")]
    _model: Text<'a>,
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    options: Option<Options>,
}

#[derive(Deserialize)]
struct GenerateRequest<'a> {
    #[serde(borrow, rename = "model")]
    _model: Text<'a>,
    #[serde(borrow)]
    prompt: Text<'a>,
    #[serde(borrow, default)]
    system: Option<Text<'a>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    options: Option<Options>,
}

/// Where a reply has its text.
#[derive(Clone, Copy)]
enum Api {
    Chat,
    Generate,
}

struct Ollama {
    api: Api,
    model: String,
}

/// Parses a request for `/api/chat`.
pub(crate) fn parse_chat(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let request: ChatRequest<'_> = from_json(body, Shape::Flat)?;
    let prompt = Prompt::from_text(&render(&request.messages), worker.options.page_size);
    let inference = inference(vec![prompt], request.options, request.stream);
    Ok(parsed(worker, Api::Chat, inference))
}

/// Parses a request for `/api/generate`. One without a prompt, as Ollama's command line sends
/// first, generates nothing.
pub(crate) fn parse_generate(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let request: GenerateRequest<'_> = from_json(body, Shape::Flat)?;
    let mut text = request.prompt.0.into_owned();
    if let Some(system) = request.system {
        text = format!("{}\n\n{text}", system.as_str());
    }
    let prompt = Some(text).filter(|text| !text.trim().is_empty());
    let prompt = prompt.map(|text| Prompt::from_text(&text, worker.options.page_size));
    let inference = inference(
        prompt.into_iter().collect(),
        request.options,
        request.stream,
    );
    Ok(parsed(worker, Api::Generate, inference))
}

/// Replies are streamed unless the request says otherwise.
fn inference(
    prompts: Vec<Prompt>,
    options: Option<Options>,
    stream: Option<bool>,
) -> InferenceRequest {
    let Options { num_predict, stop } = options.unwrap_or_default();
    InferenceRequest {
        is_list: false,
        prompts,
        sampling: vec![Sampling {
            max_new_tokens: Some(num_predict.unwrap_or(DEFAULT_PREDICT)),
            stop,
            ..Sampling::default()
        }],
        routing: Routing::default(),
        stream: stream != Some(false),
    }
}

fn parsed(worker: &Worker, api: Api, inference: InferenceRequest) -> ParsedRequest {
    let model = worker.options.model.clone();
    ParsedRequest {
        inference,
        dialect: Box::new(Ollama { api, model }),
    }
}

impl Ollama {
    fn object(&self, text: &str) -> Value {
        let mut object = json!({
            "model": self.model, "created_at": timestamp::now(), "done": false, "done_reason": null,
        });
        match self.api {
            Api::Chat => {
                object["message"] = json!({"role": "assistant", "content": text, "images": null});
            }
            Api::Generate => object["response"] = text.into(),
        }
        object
    }

    fn done(&self, text: &str) -> Value {
        let mut object = self.object(text);
        object["done"] = true.into();
        object["done_reason"] = "stop".into();
        object
    }
}

fn line(out: &mut BytesMut, value: &Value) {
    out.put_slice(&document(value));
    out.put_slice(b"\n");
}

impl Dialect for Ollama {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        let Some(sequence) = sequences.first() else {
            return document(&self.done(""));
        };
        let usage = Usage::of(sequences);
        let now = sequence.submission.scheduler.now();
        let mut object = self.done(&sequence.text(sequence.tokens()));
        let nanos = now.saturating_sub(sequence.started).as_nanos();
        object["total_duration"] = u64::try_from(nanos).unwrap_or(u64::MAX).into();
        object["prompt_eval_count"] = usage.prompt.into();
        object["eval_count"] = usage.completion.into();
        document(&object)
    }

    fn stream_type(&self) -> HeaderValue {
        HeaderValue::from_static("application/x-ndjson")
    }

    fn token(&mut self, sequence: &Sequence, at: u32, out: &mut BytesMut) {
        let (space, word) = sequence.piece(at);
        line(out, &self.object(&format!("{space}{word}")));
    }

    fn closing(&mut self, _sequences: &[Sequence], out: &mut BytesMut) {
        line(out, &self.done(""));
    }
}
