//! The inference endpoints, one row each.

use http::Method;

/// An inference endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inference {
    /// Where it stands in [`INFERENCE`].
    pub(crate) index: usize,
    /// Path at the gateway.
    pub(crate) path: &'static str,
    /// Path at the worker.
    pub(crate) worker_path: &'static str,
    /// The `endpoint` label of metrics.
    pub(crate) label: &'static str,
    /// What a body that is not declared as JSON gets.
    pub(crate) undeclared: Undeclared,
    /// Whose API the endpoint belongs to.
    pub(crate) vendor: Vendor,
    /// What becomes of the worker's reply.
    pub(crate) reply: ReplyFormat,
    /// The methods of its requests, as SGLang takes them.
    pub(crate) methods: &'static [Method],
    /// The protocol that its connections are switched to (RFC 9110 §7.8).
    pub(crate) upgrade: Option<&'static str>,
    /// What it has to do with what one worker keeps.
    pub(crate) state: State,
    /// Which workers answer it.
    pub(crate) servers: Servers,
    /// The reply can be a stream of events.
    pub(crate) streams: bool,
    /// Where a request counts the answers to its prompt.
    pub(crate) samples: Samples,
    /// SGLang reads `x-override-*` headers here, and gives them to both workers of a pair
    /// (measured; not so at the others).
    pub(crate) reads_overrides: bool,
    /// Fields that matter stand within others, where they are not read.
    pub(crate) nests_fields: bool,
    /// The fields its prompt is made of, in the order a chat template puts them.
    pub(crate) prompt: [PromptField; 3],
}

/// A field of a request's body that prompts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PromptField {
    Messages,
    Text,
    InputIds,
    Prompt,
    Input,
    Query,
    Documents,
    Items,
    Instructions,
    System,
    Tools,
    /// No field.
    None,
}

impl PromptField {
    /// How many there are, [`Self::None`] aside.
    pub(crate) const COUNT: usize = Self::None as usize;
}

/// What a body without `content-type: application/json` gets, as upstream answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undeclared {
    /// SGLang takes a body without a content type here; any other type is 415.
    OnlyIfAbsent,
    /// 415.
    Unsupported,
    /// 400 `json_parse_error`.
    BadRequest,
    /// 415: the body is a form (RFC 7578), which passes as it is.
    NoForm,
}

/// The vendor whose API an endpoint follows: where keys are sent, how errors read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// OpenAI, and what others have in its style.
    #[default]
    OpenAi,
    /// SGLang's own endpoints.
    Sglang,
    /// Anthropic: keys may come in `x-api-key`.
    Anthropic,
}

impl Vendor {
    /// Whose API a path belongs to that is no route, but may stand below one.
    pub(crate) fn of_path(path: &str) -> Self {
        let below = |row: &&Inference| {
            let rest = path.strip_prefix(row.path);
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let row = INFERENCE.iter().find(below);
        row.map_or_else(Self::default, |row| row.vendor)
    }
}

/// Which workers of a model answer an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Servers {
    /// Regular workers alone.
    #[default]
    Regular,
    /// Regular workers, or a prefill worker and a decode worker together.
    Generating,
    /// Any worker, whatever its role: nothing is scheduled there.
    Any,
}

/// The field that counts the answers to a prompt (`managers/io_struct.py`, `openai/protocol.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Samples {
    /// None: there is one answer.
    One,
    /// `n`.
    N,
    /// `n` of `sampling_params`.
    SamplingParams,
}

/// What an endpoint has to do with what one worker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It may go on in a session.
    None,
    /// Responses are kept; a later one may name an earlier.
    Responses,
    OpensSession,
    ClosesSession,
}

/// What becomes of the worker's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyFormat {
    /// Relayed byte for byte.
    Verbatim,
    /// The worker's bare array is wrapped into the rerank object.
    Rerank,
}

use PromptField::{
    Documents, Input, InputIds, Instructions, Items, Messages, None, Prompt, Query, System, Text,
    Tools,
};
use ReplyFormat::{Rerank, Verbatim};
use Samples::{N, SamplingParams};
use Servers::{Any, Generating};
use Undeclared::{BadRequest, NoForm, OnlyIfAbsent, Unsupported};
use Vendor::{Anthropic, OpenAi, Sglang};

const POST: &[Method] = &[Method::POST];
const POST_AND_PUT: &[Method] = &[Method::POST, Method::PUT];
const POST_AND_GET: &[Method] = &[Method::POST, Method::GET];
const GET: &[Method] = &[Method::GET];

/// Every inference endpoint that is forwarded to one worker.
pub(crate) const INFERENCE: [Inference; ROWS.len()] = numbered(ROWS);

#[rustfmt::skip]
const ROWS: [Inference; 31] = [
    Inference { servers: Generating, methods: POST_AND_PUT, streams: true, samples: SamplingParams, reads_overrides: true, ..native("/generate", "generate", [Text, InputIds, None]) },
    Inference { servers: Generating, streams: true, samples: N, reads_overrides: true, ..row("/v1/chat/completions", "chat", BadRequest, [Tools, Messages, None]) },
    Inference { servers: Generating, streams: true, samples: N, ..row("/v1/completions", "completions", Unsupported, [Prompt, None, None]) },
    row("/v1/embeddings", "embeddings", Unsupported, [Input, None, None]),
    row("/v1/classify", "classify", Unsupported, [Input, None, None]),
    Inference { reply: Rerank, methods: POST_AND_PUT, ..row("/v1/rerank", "rerank", Unsupported, [Query, Documents, None]) },
    Inference { path: "/rerank", reply: Rerank, ..row("/v1/rerank", "rerank", BadRequest, [Query, Documents, None]) },
    Inference { servers: Generating, state: State::Responses, streams: true, ..row("/v1/responses", "responses", BadRequest, [Tools, Instructions, Input]) },
    Inference { servers: Generating, vendor: Anthropic, streams: true, reads_overrides: true, ..row("/v1/messages", "messages", BadRequest, [Tools, System, Messages]) },
    Inference { upgrade: Some("websocket"), methods: GET, ..row("/v1/realtime", "realtime", Unsupported, [None, None, None]) },
    Inference { servers: Any, vendor: Anthropic, ..row("/v1/messages/count_tokens", "count_tokens", BadRequest, [None, None, None]) },
    row("/v1/score", "score", Unsupported, [Query, Items, None]),
    row("/v1/decisions", "decisions", Unsupported, [Input, Messages, None]),
    row("/v1/systemone", "systemone", Unsupported, [Input, Messages, None]),
    Inference { servers: Any, ..row("/v1/tokenize", "tokenize", Unsupported, [None, None, None]) },
    Inference { servers: Any, ..row("/tokenize", "tokenize", Unsupported, [None, None, None]) },
    Inference { servers: Any, ..row("/v1/detokenize", "detokenize", Unsupported, [None, None, None]) },
    Inference { servers: Any, ..row("/detokenize", "detokenize", Unsupported, [None, None, None]) },
    Inference { streams: true, ..row("/v1/audio/transcriptions", "transcriptions", NoForm, [None, None, None]) },
    Inference { methods: POST_AND_PUT, ..native("/encode", "encode", [Text, InputIds, None]) },
    Inference { methods: POST_AND_PUT, ..native("/classify", "classify", [Text, InputIds, None]) },
    Inference { servers: Any, ..native("/parse_function_call", "parse_function_call", [None, None, None]) },
    Inference { servers: Any, ..native("/separate_reasoning", "separate_reasoning", [None, None, None]) },
    Inference { state: State::OpensSession, methods: POST_AND_GET, ..native("/open_session", "open_session", [None, None, None]) },
    Inference { state: State::ClosesSession, methods: POST_AND_GET, ..native("/close_session", "close_session", [None, None, None]) },
    // SageMaker and Vertex AI call containers by these names.
    Inference { servers: Generating, vendor: OpenAi, streams: true, samples: N, ..native("/invocations", "chat", [Tools, Messages, None]) },
    Inference { nests_fields: true, ..native("/vertex_generate", "vertex_generate", [None, None, None]) },
    // Ollama's API.
    native("/api/chat", "ollama_chat", [Tools, Messages, None]),
    native("/api/generate", "ollama_generate", [System, Prompt, None]),
    Inference { servers: Any, ..native("/api/show", "ollama_show", [None, None, None]) },
    Inference { servers: Any, methods: GET, ..native("/api/tags", "ollama_tags", [None, None, None]) },
];

/// An endpoint in the style of `OpenAI`'s.
const fn row(
    path: &'static str,
    label: &'static str,
    undeclared: Undeclared,
    prompt: [PromptField; 3],
) -> Inference {
    Inference {
        index: 0,
        path,
        worker_path: path,
        label,
        undeclared,
        vendor: OpenAi,
        reply: Verbatim,
        methods: POST,
        upgrade: Option::None,
        state: State::None,
        servers: Servers::Regular,
        streams: false,
        samples: Samples::One,
        reads_overrides: false,
        nests_fields: false,
        prompt,
    }
}

/// An endpoint of SGLang's own, which takes a body without a content type.
const fn native(path: &'static str, label: &'static str, prompt: [PromptField; 3]) -> Inference {
    Inference {
        vendor: Sglang,
        ..row(path, label, OnlyIfAbsent, prompt)
    }
}

/// The rows with their indices.
const fn numbered<const N: usize>(mut rows: [Inference; N]) -> [Inference; N] {
    let mut at = 0;
    while at < N {
        rows[at].index = at;
        at += 1;
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn path_below_an_endpoint_belongs_to_its_vendor() {
        for (path, vendor) in [
            ("/v1/messages/batches", Anthropic),
            ("/v1/messages2", OpenAi),
            ("/generate/x", Sglang),
            ("/nowhere", OpenAi),
        ] {
            assert_eq!(Vendor::of_path(path), vendor, "{path}");
        }
    }

    #[test]
    fn every_path_has_one_row() {
        let paths: BTreeSet<_> = INFERENCE.iter().map(|row| row.path).collect();
        assert_eq!(paths.len(), INFERENCE.len());
    }

    #[test]
    fn rows_stand_where_their_index_says() {
        assert!(
            INFERENCE
                .iter()
                .enumerate()
                .all(|(at, row)| row.index == at)
        );
    }
}
