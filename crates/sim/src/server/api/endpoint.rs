//! The inference endpoints: their paths, methods and parsers.

use std::sync::Arc;

use http::Method;

use crate::server::dialect::dialect::ParsedRequest;
use crate::server::dialect::{chat, completion, encode, generate, messages, responses};
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
}

impl Endpoint {
    pub(crate) fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Chat,
            "/generate" => Self::Generate,
            "/v1/completions" => Self::Completions,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/classify" | "/classify" => Self::Classify,
            "/v1/rerank" => Self::Rerank,
            "/v1/score" => Self::Score,
            "/v1/responses" => Self::Responses,
            "/v1/messages" => Self::Messages,
            _ => return None,
        })
    }

    /// The methods it accepts.
    pub(crate) fn methods(self) -> &'static [Method] {
        const POST: &[Method] = &[Method::POST];
        const POST_OR_PUT: &[Method] = &[Method::POST, Method::PUT];
        match self {
            Self::Generate => POST_OR_PUT,
            _ => POST,
        }
    }

    /// Layout of its errors.
    pub(crate) fn shape(self) -> Shape {
        match self {
            Self::Generate | Self::Responses => Shape::Nested,
            Self::Messages => Shape::Anthropic,
            _ => Shape::Flat,
        }
    }

    /// Whether it rejects bodies without a JSON content type.
    pub(crate) fn needs_json(self) -> bool {
        self != Self::Generate
    }

    /// Parses a request body.
    pub(crate) fn parse(
        self,
        worker: &Arc<Worker>,
        body: &[u8],
    ) -> Result<ParsedRequest, ErrorResponse> {
        match self {
            Self::Generate => generate::parse(worker, body),
            Self::Chat => chat::parse(worker, body),
            Self::Completions => completion::parse(worker, body),
            Self::Embeddings => encode::parse_embeddings(worker, body),
            Self::Classify => encode::parse_classify(worker, body),
            Self::Rerank => encode::parse_rerank(worker, body),
            Self::Score => encode::parse_score(worker, body),
            Self::Responses => responses::parse(worker, body),
            Self::Messages => messages::parse(worker, body),
        }
    }
}
