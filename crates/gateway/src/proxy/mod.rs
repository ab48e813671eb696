//! How a request travels: from the client's bytes to one worker and back.

mod ask;
mod decisions;
mod explain;
mod inbound;
mod outbound;
mod peek;
mod relay;
mod rerank;
mod seek;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response, request};
use hyper::body::Incoming;
use routing::Request as RoutingRequest;
use tokio::time::{Instant, timeout};
use tracing::debug;

pub(crate) use ask::Asked;
pub(crate) use inbound::linger;
pub(crate) use relay::{ReplyBody, ReplyError};

use crate::config::Options;
use crate::endpoint::{Inference, Reply};
use crate::error::Error;
use crate::fleet::{Fleet, Placed, UNKNOWN_MODEL, Worker, WorkerBody};
use crate::telemetry::Metrics;
use decisions::Decisions;
use outbound::HeaderRules;
use peek::Peek;
use relay::Record;

/// Carries requests to workers.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    /// Time to a worker's response headers, and longest silence inside a body.
    timeout: Duration,
    max_payload: u64,
    rules: HeaderRules,
    decisions: Decisions,
    /// Whether every reply tells why it was routed as it was.
    explain_all: bool,
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
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        lanes: usize,
    ) -> Self {
        Self {
            fleet,
            metrics,
            timeout: Duration::from_secs(options.request_timeout_secs),
            max_payload: options.max_payload_size,
            decisions: Decisions::new(lanes),
            explain_all: options.explain_routing,
            rules: HeaderRules {
                credentials_are_ours: options.api_key.is_some(),
            },
        }
    }

    /// Refuses a body that its own `content-length` says is too large.
    pub(crate) fn check_length(&self, request: &Request<Incoming>) -> Result<(), Error> {
        inbound::check_length(request.body(), self.max_payload)
    }

    /// The life of an inference request.
    pub(crate) async fn forward(
        &self,
        row: &'static Inference,
        passage: Passage<'_>,
        request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, Error> {
        let mut placed_at = None;
        let outcome = self.carry(row, passage, request, &mut placed_at).await;
        if let Err(error) = &outcome {
            let identity = placed_at.map(|worker: Arc<Worker>| worker.identity.load_full());
            let model = identity
                .as_ref()
                .map_or(UNKNOWN_MODEL, |identity| &identity.model);
            self.metrics.request_error(model, row.label, error);
        }
        outcome
    }

    async fn carry(
        &self,
        row: &'static Inference,
        passage: Passage<'_>,
        request: Request<Incoming>,
        // Whose model a failure counts for.
        placed_at: &mut Option<Arc<Worker>>,
    ) -> Result<Response<ReplyBody>, Error> {
        let (mut parts, body) = request.into_parts();
        outbound::prepare(&mut parts, row);
        if let Err(error) = inbound::check_declared(row.undeclared, &parts.headers) {
            linger(body);
            return Err(error);
        }
        let body = inbound::read(body, self.max_payload).await?;
        let peek = Peek::read(&body)?;
        let routing = RoutingRequest {
            model: peek.model.as_deref(),
            prompt: peek.prompt(row.prompt),
            routing_key: header_text(&parts.headers, "x-smg-routing-key"),
            now: self.fleet.now(),
            chance: fastrand::u64(..),
        };
        let target = header_text(&parts.headers, "x-smg-target-worker");
        let considered = self.consider(&parts.headers, &routing);
        let placed = self
            .fleet
            .place(&routing, target)
            .ok_or(Error::NoAvailableWorkers)?;
        let explanation = self.explain(row, passage, &routing, (&placed, considered));
        let record = Self::record(row, &placed, peek.stream);
        let attempt = self.attempt(row, passage, (&parts, &body), &placed).await;
        let response = attempt.inspect_err(|_| *placed_at = Some(Arc::clone(&placed.worker)))?;
        let mut response = relay::reply(response, placed.lease, self.timeout, Some(record));
        explanation.write(response.headers_mut());
        match row.reply {
            Reply::Verbatim => Ok(response),
            Reply::Rerank => {
                let reply = rerank::reply(&body, &placed.worker, response).await;
                reply.inspect_err(|_| *placed_at = Some(placed.worker))
            }
        }
    }

    /// Counts the decision; the record goes with the reply.
    fn record(row: &'static Inference, placed: &Placed, streaming: bool) -> Record {
        let model = Arc::clone(&placed.worker.identity.load().metrics);
        model.selections.inc();
        if let Some(endpoint) = model.endpoints.get(row.index) {
            endpoint.requests(streaming).inc();
        }
        Record::new(model, row.index, streaming, Instant::now())
    }

    /// One try at one worker.
    async fn attempt(
        &self,
        row: &'static Inference,
        passage: Passage<'_>,
        (parts, body): (&request::Parts, &Bytes),
        placed: &Placed,
    ) -> Result<Response<WorkerBody>, Error> {
        let worker = &placed.worker;
        let path = outbound::path(parts, row.worker_path);
        let head = self
            .rules
            .head(worker, &parts.method, &path, (&parts.headers, passage));
        let head = head.finish(body.len());
        let sent = timeout(self.timeout, worker.send(passage.lane, &head, body)).await;
        let outcome = match sent {
            Ok(Ok(response)) => {
                self.metrics.upstream_response(response.status().as_u16());
                return Ok(response);
            }
            Ok(Err(source)) => Error::Upstream {
                worker: worker.url.to_string(),
                source,
            },
            Err(_) => Error::UpstreamTimeout {
                worker: worker.url.to_string(),
                seconds: self.timeout.as_secs(),
            },
        };
        debug!(request_id = ?passage.request_id, error = %outcome, "attempt failed");
        Err(outcome)
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
