//! Everything that can go wrong with a request: whose fault it is, and which status and code it has.

use std::sync::Arc;

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use thiserror::Error;

use super::envelope::{Envelope, ErrorContext, Shape, described, expected_key};
use crate::config::WorkerNames;
use crate::endpoint::Vendor;
use crate::upstream::UpstreamError;

/// A request the gateway answers itself, or could not finish.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// No worker takes inference requests.
    #[error("no available workers (all circuits open, unhealthy or still starting)")]
    NoAvailableWorkers { retry_after: u64 },
    /// A cap or rate is reached and too many wait already.
    #[error("too many requests: {what} is reached and {waiting} requests wait already")]
    QueueFull {
        what: &'static str,
        waiting: usize,
        retry_after: u64,
    },
    /// The wait in the queue took too long.
    #[error("timed out after {seconds} s in the queue (limit {what})")]
    QueueTimeout { what: &'static str, seconds: u64 },
    /// Several models are served, and the request names none of them.
    #[error("the request names no model; served here: {served}")]
    MissingModel { served: String },
    /// The model that the request names is not served.
    #[error("model {model:?} is not served here; served: {served}")]
    ModelNotFound { model: String, served: String },
    /// Workers in pairs do not answer this endpoint.
    #[error("{0} needs regular workers, and this model has prefill and decode workers alone")]
    OnlyPairs(&'static str),
    /// A pair of workers gives one answer to a prompt, and so many requests are not sent.
    #[error(
        "n = {0}: prefill and decode workers take a whole number from 1 to 128, the same for all prompts"
    )]
    PairSamples(u64),
    /// The answers to a request for several cannot be one answer.
    #[error("the answers of the workers cannot be joined: {0}")]
    SamplesNotJoined(String),
    /// A worker of a pair failed after the head of its response.
    #[error("worker {worker}: {message}")]
    PairFailed {
        worker: String,
        status: StatusCode,
        message: String,
    },
    /// The worker that kept it has left, or has lost it.
    #[error("{what} {id:?} not found: the worker that kept it is gone")]
    StateNotFound { what: &'static str, id: String },
    /// No worker can be asked for information.
    #[error("no workers available to answer this")]
    NoWorkers,
    /// The worker did not answer in time.
    #[error("worker {worker} sent no response headers within {seconds} s")]
    UpstreamTimeout { worker: String, seconds: u64 },
    /// The exchange with the worker failed.
    #[error("worker {worker}: {source}")]
    Upstream {
        worker: String,
        source: UpstreamError,
    },
    /// Two workers closed the connection on the request.
    #[error(
        "two workers lost their connection while they had this request; it is not sent to another one"
    )]
    RequestEndsWorkers,
    /// A worker refused the request for lack of capacity, after the head of its response.
    #[error("worker {worker} is overloaded: {message}")]
    WorkerOverloaded {
        worker: String,
        status: StatusCode,
        message: String,
    },
    /// A worker's answer to a client that has a head already.
    #[error("{message}")]
    WorkerRefused { status: StatusCode, message: String },
    /// None of the workers asked gave an answer.
    #[error("no worker answered")]
    NoWorkerResponse,
    /// The worker's answer is not what this endpoint gives.
    #[error("worker {worker} gave an unusable rerank response: {why}")]
    RerankResponse { worker: String, why: String },
    /// The request body is larger than allowed.
    #[error("request body exceeds the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    /// All request bodies together take as much memory as they may.
    #[error("request bodies take all of the {limit} bytes that they may; see --max-buffered-bytes")]
    BodyMemory { limit: u64 },
    /// The request has passed this gateway, or too many gateways, before.
    #[error("{0}")]
    LoopDetected(&'static str),
    /// The client stopped amid the request body.
    #[error("request body ended early: {0}")]
    BodyIncomplete(String),
    /// The client fell silent amid the request body.
    #[error("request body did not arrive in time")]
    BodyTimeout,
    /// The request body is not a JSON object.
    #[error("{0}")]
    Json(String),
    /// The request body is no form.
    #[error("the body is no form: {0}; expected multipart/form-data")]
    Form(String),
    /// The body is not declared as JSON.
    #[error("{why}")]
    ContentType { status: StatusCode, why: String },
    /// The body is compressed, and prompts are read from bodies as they stand.
    #[error("content-encoding {0:?} is not supported; send the body as it is")]
    ContentEncoding(String),
    /// No key, or not the right one.
    #[error("missing or invalid API key; expected {}", expected_key(*.vendor))]
    Unauthorized { vendor: Vendor },
    /// A limit of the client's key is reached.
    #[error("{limit} of this API key is reached; try again in {retry_after} s")]
    KeyLimit {
        limit: &'static str,
        retry_after: u64,
    },
    /// The client's key has not the model that would serve the request, or not an adapter.
    #[error("this API key may not use {}; it may use: {allowed}", described(.model.as_deref()))]
    ModelNotAllowed {
        model: Option<String>,
        allowed: String,
    },
    /// The control plane has credentials of its own, and this is none of them.
    #[error("control plane: {0}")]
    ControlPlaneUnauthorized(&'static str),
    /// A user of the control plane may look and change nothing.
    #[error("this control plane operation needs the role admin")]
    AdminOnly,
    /// What is done on the control plane cannot be recorded.
    #[error("the audit log cannot be written, so the control plane is closed")]
    AuditUnavailable,
    /// A web page of another site asks for a change.
    #[error(
        "refused for pages of {origin}: this route changes the gateway; list the origin in --cors-allowed-origins to allow it"
    )]
    CrossSite { origin: String },
    /// There is no such path.
    #[error("unknown URL: {method} {path}")]
    UnknownUrl { method: String, path: String },
    /// The path exists, the method does not.
    #[error("method {method} is not allowed for {path}; allowed: {allow}")]
    MethodNotAllowed {
        method: String,
        path: String,
        allow: String,
    },
    /// What should name a worker is neither its id nor its URL.
    #[error(
        "Invalid worker_id '{id}' (expected UUID, or the worker's URL with / as %2F). Error: {why}"
    )]
    WorkerId { id: String, why: String },
    /// There is no such worker.
    #[error("Worker {0} not found")]
    WorkerNotFound(String),
    /// What is said of a worker is not what can be said.
    #[error("{0}")]
    WorkerSpec(String),
    /// The worker exists, with other properties.
    #[error("{0}")]
    WorkerExists(String),
    /// The worker is leaving, and is not changed any more.
    #[error("{0}")]
    WorkerLeaving(String),
    /// The worker cannot be registered now.
    #[error("{0}")]
    RegistrationFailed(String),
    /// The same, for a route that talks plain text.
    #[error("{0}")]
    Legacy(Box<Error>),
    /// The worker did not come up while the client waited.
    #[error("worker {worker} {why}")]
    NotUp { worker: String, why: String },
    /// The route is for upgraded connections only.
    #[error(
        "this route takes WebSocket connections only: a GET over HTTP/1.1 with \"Connection: Upgrade\" and \"Upgrade: {0}\""
    )]
    UpgradeRequired(&'static str),
    /// The page that shows the fleet is open too often.
    #[error("{0} viewers watch the fleet already, and no more may; close one of them")]
    TooManyViewers(usize),
    /// The text is no log level.
    #[error("{0}")]
    LogLevel(String),
    /// A configuration was not put in force.
    #[error("{0}")]
    Configuration(String),
    /// A route of the field that this gateway does not have.
    #[error("not implemented: {0}")]
    NotImplemented(&'static str),
}

impl Error {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoAvailableWorkers { .. }
            | Self::NoWorkers
            | Self::TooManyViewers(_)
            | Self::BodyMemory { .. }
            | Self::AuditUnavailable
            | Self::Upstream {
                source: UpstreamError::Local(_) | UpstreamError::NameLookup(_),
                ..
            } => StatusCode::SERVICE_UNAVAILABLE,
            Self::QueueFull { .. } | Self::KeyLimit { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::BodyTimeout | Self::QueueTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::LoopDetected(_) => StatusCode::LOOP_DETECTED,
            Self::UpstreamTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream { .. }
            | Self::RequestEndsWorkers
            | Self::NoWorkerResponse
            | Self::SamplesNotJoined(_)
            | Self::RerankResponse { .. } => StatusCode::BAD_GATEWAY,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyIncomplete(_)
            | Self::Json(_)
            | Self::Form(_)
            | Self::PairSamples(_)
            | Self::MissingModel { .. }
            | Self::WorkerId { .. }
            | Self::WorkerSpec(_)
            | Self::NotUp { .. }
            | Self::LogLevel(_)
            | Self::Configuration(_)
            | Self::Legacy(_) => StatusCode::BAD_REQUEST,
            Self::WorkerExists(_) | Self::WorkerLeaving(_) => StatusCode::CONFLICT,
            Self::RegistrationFailed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ContentType { status, .. }
            | Self::WorkerOverloaded { status, .. }
            | Self::WorkerRefused { status, .. }
            | Self::PairFailed { status, .. } => *status,
            Self::ContentEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unauthorized { .. } | Self::ControlPlaneUnauthorized(_) => {
                StatusCode::UNAUTHORIZED
            }
            Self::CrossSite { .. } | Self::AdminOnly | Self::ModelNotAllowed { .. } => {
                StatusCode::FORBIDDEN
            }
            Self::UnknownUrl { .. }
            | Self::ModelNotFound { .. }
            | Self::StateNotFound { .. }
            | Self::WorkerNotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::UpgradeRequired(_) => StatusCode::UPGRADE_REQUIRED,
            Self::NotImplemented(_) | Self::OnlyPairs(_) => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// The stable name that `error.code`, `X-SMG-Error-Code` and metrics carry.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NoAvailableWorkers { .. } => "no_available_workers",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::MissingModel { .. } => "missing_model",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::StateNotFound { .. } => "state_not_found",
            Self::NoWorkers => "no_workers",
            Self::UpstreamTimeout { .. } => "call_upstream_timeout",
            Self::Upstream { source, .. } => upstream_code(source),
            Self::RequestEndsWorkers => "request_ends_workers",
            Self::WorkerOverloaded { .. } => "worker_overloaded",
            Self::WorkerRefused { .. } => "worker_refused",
            Self::PairFailed { .. } => "pair_failed",
            Self::PairSamples(_) => "unsupported_n",
            Self::SamplesNotJoined(_) => "samples_not_joined",
            Self::NoWorkerResponse => "no_worker_response",
            Self::RerankResponse { .. } => "rerank_response_build_failed",
            Self::TooLarge { .. } => "payload_too_large",
            Self::BodyMemory { .. } => "request_memory_exhausted",
            Self::LoopDetected(_) => "loop_detected",
            Self::BodyIncomplete(_) => "request_body_incomplete",
            Self::BodyTimeout => "request_body_timeout",
            Self::Json(_)
            | Self::ContentType {
                status: StatusCode::BAD_REQUEST,
                ..
            } => "json_parse_error",
            Self::ContentType { .. } | Self::ContentEncoding(_) => "unsupported_media_type",
            Self::Form(_) => "form_parse_error",
            Self::Unauthorized { .. } | Self::ControlPlaneUnauthorized(_) => "invalid_api_key",
            Self::KeyLimit { .. } => "key_limit_reached",
            Self::ModelNotAllowed { .. } => "model_not_allowed",
            Self::AdminOnly => "admin_role_required",
            Self::AuditUnavailable => "audit_log_unavailable",
            Self::CrossSite { .. } => "cross_site_request",
            Self::UnknownUrl { .. } => "unknown_url",
            Self::WorkerId { .. } | Self::WorkerSpec(_) | Self::NotUp { .. } => "BAD_REQUEST",
            Self::TooManyViewers(_) => "too_many_viewers",
            Self::LogLevel(_) => "invalid_log_level",
            Self::Configuration(_) => "invalid_configuration",
            Self::WorkerNotFound(_) => "WORKER_NOT_FOUND",
            Self::WorkerExists(_) => "WORKER_ALREADY_EXISTS",
            Self::WorkerLeaving(_) => "WORKER_DRAINING",
            Self::RegistrationFailed(_) => "INTERNAL_SERVER_ERROR",
            Self::Legacy(error) => error.code(),
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::UpgradeRequired(_) => "upgrade_required",
            Self::NotImplemented(_) => "not_implemented",
            Self::OnlyPairs(_) => "not_implemented_for_pairs",
        }
    }

    /// The `error_type` label of `smg_router_request_errors_total`.
    pub(crate) fn metric_type(&self) -> &'static str {
        match self {
            Self::NoAvailableWorkers { .. } | Self::NoWorkers => "no_workers",
            Self::UpstreamTimeout { .. } | Self::QueueTimeout { .. } => "timeout",
            Self::Upstream { .. }
            | Self::RequestEndsWorkers
            | Self::WorkerOverloaded { .. }
            | Self::WorkerRefused { .. }
            | Self::PairFailed { .. }
            | Self::NoWorkerResponse
            | Self::SamplesNotJoined(_)
            | Self::RerankResponse { .. } => "backend_error",
            // Of the five types dashboards know, the one they find 429 under: there are workers,
            // none was asked, and the request is sound.
            Self::QueueFull { .. }
            | Self::BodyMemory { .. }
            | Self::LoopDetected(_)
            | Self::NotImplemented(_)
            | Self::AuditUnavailable
            | Self::RegistrationFailed(_) => "internal_error",
            _ => "validation_error",
        }
    }

    /// How the answer reads: the shape of the field for the kind of route.
    fn shape(&self) -> Shape {
        match self {
            Self::WorkerId { .. }
            | Self::WorkerNotFound(_)
            | Self::WorkerSpec(_)
            | Self::WorkerExists(_)
            | Self::WorkerLeaving(_)
            | Self::NotUp { .. }
            | Self::RegistrationFailed(_) => Shape::Worker,
            Self::Legacy(_) => Shape::Text,
            _ => Shape::Vendor,
        }
    }

    /// The worker that the error is about.
    fn worker(&self) -> Option<&str> {
        match self {
            Self::UpstreamTimeout { worker, .. }
            | Self::Upstream { worker, .. }
            | Self::WorkerOverloaded { worker, .. }
            | Self::RerankResponse { worker, .. } => Some(worker),
            _ => None,
        }
    }

    /// The message, for clients that may know the worker's name or may not.
    fn message(&self, names: WorkerNames) -> String {
        let message = self.to_string();
        match self.worker() {
            Some(worker) if names == WorkerNames::Hidden => message.replace(worker, "(hidden)"),
            _ => message,
        }
    }

    /// The message for the log: without a worker's own words, which may repeat the prompt.
    pub(crate) fn log_text(&self) -> String {
        match self {
            Self::WorkerOverloaded { worker, .. } => format!("worker {worker} is overloaded"),
            Self::PairFailed { worker, status, .. } => format!("worker {worker}: {status}"),
            Self::WorkerRefused { status, .. } => format!("the worker's answer is {status}"),
            Self::RerankResponse { worker, .. } => {
                format!("worker {worker} gave an unusable rerank response")
            }
            Self::Legacy(error) => error.log_text(),
            _ => self.to_string(),
        }
    }

    /// The error as its client may read it.
    fn envelope<'a>(&self, context: ErrorContext<'a>) -> Envelope<'a> {
        Envelope {
            status: self.status(),
            code: self.code(),
            message: self.message(context.names),
            request_id: context.request_id,
        }
    }

    /// The answer in the shape that the route's clients read.
    pub(super) fn render(&self, context: ErrorContext<'_>) -> Response<Full<Bytes>> {
        let envelope = self.envelope(context);
        let (content_type, text) = match self.shape() {
            Shape::Vendor => (
                "application/json",
                envelope.body(context.vendor).to_string(),
            ),
            Shape::Worker => {
                let body = serde_json::json!({"error": envelope.message, "code": self.code()});
                ("application/json", body.to_string())
            }
            Shape::Text => ("text/plain; charset=utf-8", envelope.message),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert("x-smg-error-code", HeaderValue::from_static(self.code()));
        match self {
            Self::NoAvailableWorkers { retry_after }
            | Self::KeyLimit { retry_after, .. }
            | Self::QueueFull { retry_after, .. } => {
                headers.insert(header::RETRY_AFTER, (*retry_after).into());
            }
            Self::NoWorkers
            | Self::AuditUnavailable
            | Self::BodyMemory { .. }
            | Self::QueueTimeout { .. }
            | Self::WorkerOverloaded { .. }
            | Self::Upstream {
                source: UpstreamError::Local(_) | UpstreamError::NameLookup(_),
                ..
            } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Unauthorized { .. } => {
                let challenge = HeaderValue::from_static("Bearer realm=\"data-plane\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Self::ControlPlaneUnauthorized(_) => {
                let challenge = HeaderValue::from_static("Bearer realm=\"control-plane\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            // RFC 9110 §12.5.3: what may be sent instead.
            Self::ContentEncoding(_) => {
                let plain = HeaderValue::from_static("identity");
                headers.insert(header::ACCEPT_ENCODING, plain);
            }
            // RFC 9110 §15.5.22.
            Self::UpgradeRequired(protocol) => {
                headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
                let option = HeaderValue::from_static("Upgrade");
                headers.insert(header::CONNECTION, option);
            }
            Self::MethodNotAllowed { allow, .. } => {
                if let Ok(allow) = HeaderValue::try_from(allow) {
                    headers.insert(header::ALLOW, allow);
                }
            }
            _ => {}
        }
        response
    }

    /// The same as the last event of a stream, whose head has been sent.
    pub(crate) fn event(&self, context: ErrorContext<'_>) -> Bytes {
        self.envelope(context).event(context.vendor)
    }

    /// The answer, with the error as an extension: metrics and the log read it there.
    pub(crate) fn respond(self, context: ErrorContext<'_>) -> Response<Full<Bytes>> {
        let mut response = self.render(context);
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response<Body> {
        let context = ErrorContext {
            vendor: Vendor::OpenAi,
            names: WorkerNames::Shown,
            request_id: None,
        };
        self.respond(context).map(Body::new)
    }
}

/// The name of a failed exchange with a worker.
fn upstream_code(source: &UpstreamError) -> &'static str {
    match source {
        UpstreamError::NotSent(_) => "call_upstream_connection_failed",
        UpstreamError::Local(_) => "gateway_resources_exhausted",
        UpstreamError::NameLookup(_) => "name_lookup_failed",
        _ => "call_upstream_request_failed",
    }
}
