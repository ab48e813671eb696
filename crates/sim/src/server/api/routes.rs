//! Which path is what, and which methods it takes.

use std::sync::Arc;

use http::Method;

use crate::server::dialect::dialect::ParsedRequest;
use crate::server::dialect::{chat, completion, encode, generate, messages, responses};
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::runtime::worker::Worker;

/// What a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// Work for the engine.
    Inference(Endpoint),
    /// About the worker; never faulted, except health.
    Control(Control<'a>),
    /// The simulator's own, under `/sim`.
    Sim(SimCall),
}

/// The inference endpoints.
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

/// The other endpoints of SGLang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control<'a> {
    Health,
    HealthGenerate,
    ServerInfo,
    ModelInfo,
    Models,
    Model(&'a str),
    GetLoad,
    Loads,
    Metrics,
    FlushCache,
    AbortRequest,
    Tokenize,
    Detokenize,
    Response(&'a str),
    CancelResponse(&'a str),
    Profile,
}

/// What can be asked of the simulator itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SimCall {
    Faults,
    Stats,
    Requests,
    Reset,
}

impl<'a> Route<'a> {
    pub(crate) fn find(path: &'a str) -> Option<Self> {
        if let Some(api) = Endpoint::find(path) {
            return Some(Self::Inference(api));
        }
        let sim = match path {
            "/sim/faults" => SimCall::Faults,
            "/sim/stats" => SimCall::Stats,
            "/sim/requests" => SimCall::Requests,
            "/sim/reset" => SimCall::Reset,
            _ => return Control::find(path).map(Self::Control),
        };
        Some(Self::Sim(sim))
    }

    /// The methods it takes, as `Allow` lists them.
    pub(crate) fn methods(self) -> &'static str {
        match self {
            Self::Inference(Endpoint::Generate) => "POST, PUT",
            Self::Sim(SimCall::Faults) | Self::Control(Control::FlushCache | Control::Profile) => {
                "GET, POST"
            }
            Self::Inference(_)
            | Self::Sim(SimCall::Reset)
            | Self::Control(
                Control::AbortRequest
                | Control::Tokenize
                | Control::Detokenize
                | Control::CancelResponse(_),
            ) => "POST",
            Self::Control(_) | Self::Sim(_) => "GET",
        }
    }

    pub(crate) fn takes(self, method: &Method) -> bool {
        self.methods()
            .split(", ")
            .any(|allowed| allowed == method.as_str())
    }
}

impl Endpoint {
    fn find(path: &str) -> Option<Self> {
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

    /// How its errors look.
    pub(crate) fn shape(self) -> Shape {
        match self {
            Self::Generate | Self::Responses => Shape::Nested,
            Self::Messages => Shape::Anthropic,
            _ => Shape::Flat,
        }
    }

    /// Whether it refuses bodies that are not declared as JSON.
    pub(crate) fn needs_json(self) -> bool {
        self != Self::Generate
    }

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

impl<'a> Control<'a> {
    fn find(path: &'a str) -> Option<Self> {
        Some(match path {
            "/health" => Self::Health,
            "/health_generate" => Self::HealthGenerate,
            "/server_info" | "/get_server_info" => Self::ServerInfo,
            "/model_info" | "/get_model_info" => Self::ModelInfo,
            "/v1/models" => Self::Models,
            "/get_load" => Self::GetLoad,
            "/v1/loads" => Self::Loads,
            "/metrics" => Self::Metrics,
            "/flush_cache" => Self::FlushCache,
            "/abort_request" => Self::AbortRequest,
            "/tokenize" | "/v1/tokenize" => Self::Tokenize,
            "/detokenize" | "/v1/detokenize" => Self::Detokenize,
            "/start_profile" | "/stop_profile" => Self::Profile,
            _ => return Self::find_by_id(path),
        })
    }

    fn find_by_id(path: &'a str) -> Option<Self> {
        if let Some(id) = path.strip_prefix("/v1/models/") {
            return Some(Self::Model(id));
        }
        let id = path.strip_prefix("/v1/responses/")?;
        Some(match id.strip_suffix("/cancel") {
            Some(id) => Self::CancelResponse(id),
            None => Self::Response(id),
        })
    }
}
