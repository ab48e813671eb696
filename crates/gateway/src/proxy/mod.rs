//! How a request travels: from the client's bytes to one worker and back.

mod ask;
mod course;
mod decisions;
mod explain;
mod inbound;
mod outbound;
mod peek;
mod relay;
mod rerank;
mod seek;
mod sender;
mod tries;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response, request};
use hyper::body::Incoming;
use routing::{Request as RoutingRequest, RetryBudget, RetryRules};

pub(crate) use ask::{Asked, Question};
pub(crate) use inbound::{declares_json, linger, read as read_body};
pub(crate) use relay::{ReplyBody, ReplyError};

use crate::config::{Options, seconds};
use crate::endpoint::{Inference, Reply};
use crate::error::Error;
use crate::fleet::{Fleet, UNKNOWN_MODEL, Worker};
use crate::telemetry::{BranchMetrics, Metrics};
use decisions::Decisions;
use outbound::HeaderRules;
use peek::Peek;
use sender::ClientHeaders;
use tries::Job;

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
pub(crate) struct Received {
    parts: request::Parts,
    body: Bytes,
}

/// What the server knows of a request besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage<'a> {
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
        inbound::check_length(request.body(), self.max_payload)
    }

    /// Takes an inference request in, whole but not yet looked at.
    pub(crate) async fn receive(
        &self,
        row: &'static Inference,
        request: Request<Incoming>,
    ) -> Result<Received, Error> {
        let (parts, body) = request.into_parts();
        let received = inbound::read(body, self.max_payload).await;
        let body = received.inspect_err(|error| {
            self.metrics.request_error(UNKNOWN_MODEL, row.label, error);
        })?;
        Ok(Received { parts, body })
    }

    /// The life of an inference request.
    pub(crate) async fn forward(
        &self,
        row: &'static Inference,
        passage: Passage<'_>,
        received: Received,
    ) -> Result<Response<ReplyBody>, Error> {
        let mut placed_at = None;
        let outcome = self.carry(row, passage, received, &mut placed_at).await;
        if let Err(error) = &outcome {
            let identity = placed_at.map(|worker: Arc<Worker>| worker.identity.load_full());
            let model = identity
                .as_ref()
                .map_or(UNKNOWN_MODEL, |identity| &identity.model);
            self.metrics.request_error(model, row.label, error);
        }
        outcome
    }

    fn sender<'a>(&self, headers: &'a HeaderMap) -> ClientHeaders<'a> {
        ClientHeaders {
            headers,
            shared_credentials: self.rules.credentials_are_ours,
        }
    }

    async fn carry(
        &self,
        row: &'static Inference,
        passage: Passage<'_>,
        received: Received,
        // Whose model a failure counts for.
        placed_at: &mut Option<Arc<Worker>>,
    ) -> Result<Response<ReplyBody>, Error> {
        let Received { mut parts, body } = received;
        outbound::prepare(&mut parts, row);
        inbound::check_declared(row.undeclared, &parts.headers)?;
        let peek = Peek::read(&body)?;
        let sender = self.sender(&parts.headers);
        let routing = RoutingRequest {
            model: peek.model.as_deref(),
            prompt: peek.prompt(row.prompt),
            routing_key: header_text(&parts.headers, "x-smg-routing-key"),
            sender: Some(&sender),
            now: self.fleet.now(),
            chance: fastrand::u64(..),
        };
        let job = Job {
            row,
            passage,
            parts: &parts,
            body: &body,
            routing: &routing,
            target: header_text(&parts.headers, "x-smg-target-worker"),
            streaming: peek.stream,
        };
        let mut record = None;
        let tried = self.try_workers(job, &mut record).await?;
        let blame = |_: &Error| *placed_at = Some(Arc::clone(&tried.worker));
        let response = tried.answer.inspect_err(blame)?;
        let mut response = relay::reply(response, tried.ticket, self.timeout, record);
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
