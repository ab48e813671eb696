//! Objects that the OpenAI APIs share.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::runtime::sequence::{Sequence, Usage};
use crate::server::runtime::vocabulary;

/// `stream_options` of the OpenAI APIs.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    include_usage: Option<bool>,
}

/// Whether the request asks for a usage chunk.
pub(super) fn wants_usage(options: Option<StreamOptions>) -> bool {
    options.and_then(|options| options.include_usage) == Some(true)
}

/// The OpenAI `usage` object.
pub(super) fn usage_object(sequences: &[Sequence]) -> Value {
    let Usage {
        prompt,
        completion,
        cached,
    } = Usage::of(sequences);
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// One OpenAI chat logprob entry.
pub(super) fn logprob_entry(sequence: &Sequence, at: u32) -> Value {
    let token = vocabulary::word(sequence.seed, at);
    json!({
        "token": token, "logprob": vocabulary::logprob(sequence.seed, at),
        "bytes": token.as_bytes(), "top_logprobs": [],
    })
}
