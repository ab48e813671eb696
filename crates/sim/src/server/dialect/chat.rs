//! `/v1/chat/completions`.

use std::fmt::Write;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::dialect::{Dialect, ParsedRequest};
use super::events::{data, document, done};
use super::openai::{StreamOptions, logprob_entry, usage_object, wants_usage};
use crate::engine::Prompt;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{OneOrMany, Routing, Sampling, Text, from_json};
use crate::server::runtime::sequence::{InferenceRequest, Sequence};
use crate::server::runtime::worker::{Worker, unix_seconds};

#[derive(Deserialize)]
struct ChatRequest<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    #[serde(borrow, default)]
    model: Option<Text<'a>>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    stop: Option<OneOrMany<String>>,
    #[serde(default)]
    ignore_eos: Option<bool>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    rid: Option<OneOrMany<String>>,
    #[serde(default)]
    data_parallel_rank: Option<u32>,
    #[serde(default)]
    routed_dp_rank: Option<u32>,
}

/// One message of a conversation.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    pub(super) role: Text<'a>,
    #[serde(borrow, default)]
    pub(super) content: Option<Text<'a>>,
}

/// The prompt of a conversation; it ends with the assistant's role.
pub(super) fn render<'a>(messages: impl IntoIterator<Item = &'a Message<'a>>) -> String {
    let mut prompt = String::with_capacity(1024);
    for Message { role, content } in messages {
        let content = content.as_ref().map_or("", Text::as_str);
        for piece in ["<|", role.as_str(), "|>\n", content, "\n"] {
            prompt.push_str(piece);
        }
    }
    prompt.push_str("<|assistant|>\n");
    prompt
}

struct Chat {
    model: String,
    created: u64,
    logprobs: bool,
    usage: bool,
    chunk_head: String, // start of every chunk, up to the choice's index
}

/// Parses a request.
pub(crate) fn parse(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let request: ChatRequest<'_> = from_json(body, Shape::Flat)?;
    if request.messages.is_empty() {
        return Err(ErrorResponse::bad_request(
            Shape::Flat,
            "messages: must not be empty",
        ));
    }
    let sampling = Sampling {
        max_new_tokens: request.max_completion_tokens.or(request.max_tokens),
        n: request.n,
        ignore_eos: request.ignore_eos,
        stop: request.stop,
    };
    let rank = request.routed_dp_rank.or(request.data_parallel_rank);
    let inference = InferenceRequest {
        is_list: false,
        prompts: vec![Prompt::from_text(
            &render(&request.messages),
            worker.options.page_size,
        )],
        sampling: vec![sampling],
        routing: Routing::new(request.rid, rank),
        stream: request.stream == Some(true),
    };
    let chat = Chat {
        model: worker.model_or_own(request.model),
        created: unix_seconds(),
        logprobs: request.logprobs == Some(true),
        usage: wants_usage(request.stream_options),
        chunk_head: String::new(),
    };
    Ok(ParsedRequest {
        inference,
        dialect: Box::new(chat),
    })
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice>,
    usage: Value,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<Value>,
    finish_reason: &'static str,
    matched_stop: Option<Value>,
}

#[derive(Serialize)]
struct AssistantMessage {
    role: &'static str,
    content: String,
    reasoning_content: Option<()>,
    tool_calls: Option<()>,
}

impl Chat {
    fn choice(&self, sequence: &Sequence) -> Choice {
        let entries = || (0..sequence.tokens()).map(|at| logprob_entry(sequence, at));
        let finish = sequence.finish_object();
        Choice {
            index: sequence.index,
            message: AssistantMessage {
                role: "assistant",
                content: sequence.text(sequence.tokens()),
                reasoning_content: None,
                tool_calls: None,
            },
            logprobs: self
                .logprobs
                .then(|| json!({"content": entries().collect::<Vec<_>>()})),
            finish_reason: sequence.finish_reason(),
            matched_stop: finish.get("matched").cloned(),
        }
    }

    fn chunk(&self, id: &str, choices: &Value, usage: Option<&Value>) -> Value {
        json!({
            "id": id, "object": "chat.completion.chunk", "created": self.created,
            "model": self.model, "choices": choices, "usage": usage,
        })
    }

    fn role_chunk(&self, sequence: &Sequence, out: &mut BytesMut) {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!([{
            "index": sequence.index, "delta": delta, "logprobs": null, "finish_reason": null,
        }]);
        data(out, &self.chunk(&sequence.rid, &choice, None));
    }
}

impl Dialect for Chat {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        document(&Completion {
            id: sequences.first().map_or("", |sequence| &sequence.rid),
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: sequences
                .iter()
                .map(|sequence| self.choice(sequence))
                .collect(),
            usage: usage_object(sequences),
        })
    }

    fn opening(&mut self, sequences: &[Sequence], _out: &mut BytesMut) {
        let id = sequences.first().map_or("", |sequence| &sequence.rid);
        let (id, model) = (json!(id), json!(self.model));
        let _ = write!(
            self.chunk_head,
            "data: {{\"id\":{id},\"object\":\"chat.completion.chunk\",\"created\":{},\
             \"model\":{model},\"choices\":[{{\"index\":",
            self.created
        );
    }

    fn token(&mut self, sequence: &Sequence, at: u32, out: &mut BytesMut) {
        if at == 0 {
            self.role_chunk(sequence, out);
        }
        let (space, word) = sequence.piece(at);
        let _ = write!(
            out,
            "{}{},\"delta\":{{\"content\":\"{space}{word}\"}},\"logprobs\":",
            self.chunk_head, sequence.index
        );
        if self.logprobs {
            let _ = write!(out, "{}", json!({"content": [logprob_entry(sequence, at)]}));
        } else {
            out.put_slice(b"null");
        }
        out.put_slice(b",\"finish_reason\":null}],\"usage\":null}\n\n");
    }

    fn ending(&mut self, sequence: &Sequence, sent: u32, out: &mut BytesMut) {
        if sent == 0 {
            self.role_chunk(sequence, out);
        }
        let choice = json!([{
            "index": sequence.index, "delta": {}, "logprobs": null,
            "finish_reason": sequence.finish_reason(),
            "matched_stop": sequence.finish_object().get("matched"),
        }]);
        data(out, &self.chunk(&sequence.rid, &choice, None));
    }

    fn closing(&mut self, sequences: &[Sequence], out: &mut BytesMut) {
        if self.usage {
            let id = sequences.first().map_or("", |sequence| &sequence.rid);
            data(
                out,
                &self.chunk(id, &json!([]), Some(&usage_object(sequences))),
            );
        }
        done(out);
    }
}
