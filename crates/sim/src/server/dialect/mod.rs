//! The APIs: how each reads a request and words an answer.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod encode;
pub(crate) mod generate;
pub(crate) mod messages;
pub(crate) mod responses;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::sequence::{Ask, Sequence, Usage};
use super::words;

/// An API's wording of an answer.
pub(crate) trait Dialect: Send + Sync {
    /// The answer as one JSON document.
    fn document(&mut self, reply: &[Sequence]) -> Bytes;

    /// Events before the first token.
    fn opening(&mut self, _reply: &[Sequence], _out: &mut BytesMut) {}

    /// The event of token `at`.
    fn token(&mut self, _sequence: &Sequence, _at: u32, _out: &mut BytesMut) {}

    /// The event of a sequence's end, after `told` tokens.
    fn ending(&mut self, _sequence: &Sequence, _told: u32, _out: &mut BytesMut) {}

    /// Events after all sequences have ended.
    fn closing(&mut self, _reply: &[Sequence], _out: &mut BytesMut) {}
}

/// A request understood: what to compute and how to tell it.
pub(crate) type Understood = (Ask, Box<dyn Dialect>);

/// `stream_options` of the OpenAI APIs.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// Whether a usage chunk is asked for.
fn wants_usage(options: Option<StreamOptions>) -> bool {
    options.and_then(|options| options.include_usage) == Some(true)
}

/// The OpenAI `usage` object.
fn usage_object(reply: &[Sequence]) -> Value {
    let Usage {
        prompt,
        completion,
        cached,
    } = Usage::of(reply);
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// One OpenAI chat logprob entry.
fn logprob_entry(sequence: &Sequence, at: u32) -> Value {
    let token = words::word(sequence.seed, at);
    json!({
        "token": token, "logprob": words::logprob(sequence.seed, at),
        "bytes": token.as_bytes(), "top_logprobs": [],
    })
}

fn document(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// `data: <json>` and the blank line.
fn data(out: &mut BytesMut, value: &impl Serialize) {
    out.put_slice(b"data: ");
    out.put_slice(&serde_json::to_vec(value).unwrap_or_default());
    out.put_slice(b"\n\n");
}

/// A named event, as the Responses and Messages APIs use them.
fn event(out: &mut BytesMut, name: &str, value: &impl Serialize) {
    out.put_slice(b"event: ");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\n");
    data(out, value);
}

fn done(out: &mut BytesMut) {
    out.put_slice(b"data: [DONE]\n\n");
}
