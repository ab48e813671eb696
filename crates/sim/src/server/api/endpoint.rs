//! The inference endpoints: their paths, methods and parsers.

use std::sync::Arc;

use http::Method;

use crate::server::dialect::dialect::ParsedRequest;
use crate::server::dialect::{
    chat, completion, encode, generate, messages, ollama, responses, transcription, vertex,
};
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::runtime::worker::Worker;

/// An inference endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Generate,
    Chat,
    Completions,
    Embeddings,
    Classify,
    Rerank,
    Score,
    Responses,
    Messages,
    /// `/encode` and `/classify`.
    Encode,
    /// Chat as `SageMaker` sends it.
    Invocations,
    Vertex,
    OllamaChat,
    OllamaGenerate,
    Transcriptions,
}

const POST: &[Method] = &[Method::POST];
const POST_OR_PUT: &[Method] = &[Method::POST, Method::PUT];

/// Their paths.
const PATHS: &[(&str, Endpoint)] = &[
    ("/v1/chat/completions", Endpoint::Chat),
    ("/generate", Endpoint::Generate),
    ("/v1/completions", Endpoint::Completions),
    ("/v1/embeddings", Endpoint::Embeddings),
    ("/v1/classify", Endpoint::Classify),
    ("/v1/rerank", Endpoint::Rerank),
    ("/v1/score", Endpoint::Score),
    ("/v1/responses", Endpoint::Responses),
    ("/v1/messages", Endpoint::Messages),
    ("/encode", Endpoint::Encode),
    ("/classify", Endpoint::Encode),
    ("/invocations", Endpoint::Invocations),
    ("/vertex_generate", Endpoint::Vertex),
    ("/api/chat", Endpoint::OllamaChat),
    ("/api/generate", Endpoint::OllamaGenerate),
    ("/v1/audio/transcriptions", Endpoint::Transcriptions),
];

impl Endpoint {
    pub(crate) fn find(path: &str) -> Option<Self> {
        let mut paths = PATHS.iter();
        let found = paths.find(|(known, _)| *known == path);
        found.map(|(_, endpoint)| *endpoint)
    }

    /// The methods it accepts.
    pub(crate) fn methods(self) -> &'static [Method] {
        match self {
            Self::Generate | Self::Encode | Self::Rerank => POST_OR_PUT,
            _ => POST,
        }
    }

    /// Layout of its errors.
    pub(crate) fn shape(self) -> Shape {
        match self {
            Self::Generate | Self::Responses | Self::Encode | Self::Vertex => Shape::Nested,
            Self::Messages => Shape::Anthropic,
            _ => Shape::Flat,
        }
    }

    /// Whether it rejects bodies without a JSON content type.
    pub(crate) fn needs_json(self) -> bool {
        !matches!(
            self,
            Self::Generate
                | Self::Encode
                | Self::Invocations
                | Self::Vertex
                | Self::OllamaChat
                | Self::OllamaGenerate
                | Self::Transcriptions
        )
    }

    /// Whether it passes the bootstrap fields of its bodies on to the engine.
    pub(crate) fn carries_bootstrap(self) -> bool {
        self.takes_json() && !matches!(self, Self::Score | Self::OllamaChat | Self::OllamaGenerate)
    }

    /// Whether headers may replace its fields.
    pub(crate) fn takes_overrides(self) -> bool {
        matches!(self, Self::Generate | Self::Chat | Self::Messages)
    }

    /// Whether its bodies are JSON.
    pub(crate) fn takes_json(self) -> bool {
        self != Self::Transcriptions
    }

    /// Parses a request body of this content type.
    pub(crate) fn parse(
        self,
        worker: &Arc<Worker>,
        content_type: &str,
        body: &[u8],
    ) -> Result<ParsedRequest, ErrorResponse> {
        match self {
            Self::Generate => generate::parse(worker, body),
            Self::Chat | Self::Invocations => chat::parse(worker, body),
            Self::Completions => completion::parse(worker, body),
            Self::Embeddings => encode::parse_embeddings(worker, body),
            Self::Classify => encode::parse_classify(worker, body),
            Self::Rerank => encode::parse_rerank(worker, body),
            Self::Score => encode::parse_score(worker, body),
            Self::Encode => encode::parse_native(worker, body),
            Self::Responses => responses::parse(worker, body),
            Self::Messages => messages::parse(worker, body),
            Self::Vertex => vertex::parse(worker, body),
            Self::OllamaChat => ollama::parse_chat(worker, body),
            Self::OllamaGenerate => ollama::parse_generate(worker, body),
            Self::Transcriptions => transcription::parse(worker, content_type, body),
        }
    }
}
