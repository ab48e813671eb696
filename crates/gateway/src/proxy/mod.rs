//! How a request travels: from the client's bytes to one worker and back.

mod attempts;
mod body_fields;
mod broadcast;
mod client_key;
mod decisions;
mod explain;
mod fan_out;
mod request_body;
mod request_head;
mod rerank;
mod response_body;
mod retry;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response, request};
use hyper::body::Incoming;
use routing::{Request as RoutingRequest, RetryBudget, RetryRules};

pub(crate) use fan_out::{WorkerAnswer, WorkerQuestion};
pub(crate) use request_body::{declares_json, drain_in_background, read as read_body};
pub(crate) use response_body::{ReplyBody, ReplyError};

use crate::config::{Options, seconds};
use crate::endpoint::{Inference, Reply};
use crate::error::Error;
use crate::fleet::{Fleet, UNKNOWN_MODEL, Worker};
use crate::telemetry::{BranchMetrics, Metrics};
use body_fields::BodyFields;
use client_key::ClientHeaders;
use decisions::Decisions;
use request_head::HeaderRules;
use retry::ProxyRequest;

/// Carries requests to workers.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    branches: BranchMetrics,
    /// Time to a worker's response headers, and longest silence inside a body.
    timeout: Duration,
    /// Silence of a worker after which it is probed.
    doubt_after: Duration,
    max_payload: u64,
    rules: HeaderRules,
    decisions: Decisions,
    retry: RetryRules,
    budget: Mutex<RetryBudget>,
    /// Whether every reply tells why it was routed as it was.
    explain_all: bool,
}

/// An inference request that has come in whole.
#[derive(Debug)]
pub(crate) struct BufferedRequest {
    parts: request::Parts,
    body: Bytes,
}

/// What the server knows of a request besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestContext<'a> {
    /// The lane whose thread carries the request.
    pub(crate) lane: usize,
    pub(crate) request_id: &'a HeaderValue,
}

impl Proxy {
    pub(crate) fn new(
        options: &Options,
        (fleet, metrics): (Arc<Fleet>, Arc<Metrics>),
        lanes: usize,
    ) -> Self {
        Self {
            fleet,
            branches: metrics.branches(options.policy),
            metrics,
            timeout: seconds(options.request_timeout_secs),
            doubt_after: seconds(options.health_check_timeout_secs),
            max_payload: options.max_payload_size,
            decisions: Decisions::new(lanes),
            retry: options.retry_rules(),
            budget: Mutex::new(RetryBudget::new(
                options.retry_budget_ratio,
                options.retry_budget_min_per_sec,
            )),
            explain_all: options.explain_routing,
            rules: HeaderRules {
                credentials_are_ours: options.api_key.is_some(),
            },
        }
    }

    /// The largest body that is taken in, bytes.
    pub(crate) fn max_payload(&self) -> u64 {
        self.max_payload
    }

    /// Refuses a body that its own `content-length` says is too large.
    pub(crate) fn check_length(&self, request: &Request<Incoming>) -> Result<(), Error> {
        request_body::check_length(request.body(), self.max_payload)
    }

    /// Takes an inference request in, whole but not yet looked at.
    pub(crate) async fn receive(
        &self,
        row: &'static Inference,
        request: Request<Incoming>,
    ) -> Result<BufferedRequest, Error> {
        let (parts, body) = request.into_parts();
        let received = request_body::read(body, self.max_payload).await;
        let body = received.inspect_err(|error| {
            self.metrics.request_error(UNKNOWN_MODEL, row.label, error);
        })?;
        Ok(BufferedRequest { parts, body })
    }

    /// The life of an inference request.
    pub(crate) async fn forward(
        &self,
        row: &'static Inference,
        context: RequestContext<'_>,
        received: BufferedRequest,
    ) -> Result<Response<ReplyBody>, Error> {
        let mut placed_at = None;
        let outcome = self.dispatch(row, context, received, &mut placed_at).await;
        if let Err(error) = &outcome {
            let identity = placed_at.map(|worker: Arc<Worker>| worker.model_info.load_full());
            let model = identity
                .as_ref()
                .map_or(UNKNOWN_MODEL, |identity| &identity.model);
            self.metrics.request_error(model, row.label, error);
        }
        outcome
    }

    fn client_key<'a>(&self, headers: &'a HeaderMap) -> ClientHeaders<'a> {
        ClientHeaders {
            headers,
            shared_credentials: self.rules.credentials_are_ours,
        }
    }

    async fn dispatch(
        &self,
        row: &'static Inference,
        context: RequestContext<'_>,
        received: BufferedRequest,
        // Whose model a failure counts for.
        placed_at: &mut Option<Arc<Worker>>,
    ) -> Result<Response<ReplyBody>, Error> {
        let BufferedRequest { mut parts, body } = received;
        request_head::prepare(&mut parts, row);
        request_body::check_declared(row.undeclared, &parts.headers)?;
        let fields = BodyFields::read(&body)?;
        let client_key = self.client_key(&parts.headers);
        let routing = RoutingRequest {
            model: fields.model.as_deref(),
            prompt: fields.prompt(row.prompt),
            routing_key: header_text(&parts.headers, "x-smg-routing-key"),
            client_key: Some(&client_key),
            now: self.fleet.now(),
            seed: fastrand::u64(..),
        };
        let request = ProxyRequest {
            row,
            context,
            parts: &parts,
            body: &body,
            routing: &routing,
            target: header_text(&parts.headers, "x-smg-target-worker"),
            streaming: fields.stream,
        };
        let mut record = None;
        let tried = self.send_with_retries(request, &mut record).await?;
        let blame = |_: &Error| *placed_at = Some(Arc::clone(&tried.worker));
        let response = tried.answer.inspect_err(blame)?;
        let mut response = response_body::reply(response, tried.in_flight, self.timeout, record);
        tried.explanation.write(response.headers_mut());
        match row.reply {
            Reply::Verbatim => Ok(response),
            Reply::Rerank => {
                let reply = rerank::reply(&body, &tried.worker, response).await;
                reply.inspect_err(|_| *placed_at = Some(tried.worker))
            }
        }
    }
}

/// A header's value, when it is text and not empty.
fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)?
        .to_str()
        .ok()
        .filter(|text| !text.is_empty())
}
