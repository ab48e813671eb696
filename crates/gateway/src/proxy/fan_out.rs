//! Questions to workers that are not inference: one worker's answer, or everybody's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::body_fields::BodyFields;
use super::proxy::Proxy;
use super::request::RequestContext;
use super::request_body;
use crate::error::Error;
use crate::fleet::{Answer, Worker, ask as ask_endpoint};
use crate::lane::Lane;

/// Workers asked at once.
pub(super) const FAN_OUT: usize = 32;
/// Longest wait for an answer to a question that costs the worker nothing.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer that takes work: a worker's generation check alone gives
/// itself 20 s.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(45);

/// A worker and what it answered, if it did.
#[derive(Debug)]
pub(crate) struct WorkerAnswer {
    pub(crate) worker: Arc<Worker>,
    pub(crate) answer: Result<Answer, Error>,
}

/// What workers are asked.
#[derive(Clone, Debug)]
pub(crate) struct WorkerQuestion {
    method: Method,
    /// The first that a worker has is the one.
    paths: &'static [&'static str],
    /// JSON, or nothing.
    body: Bytes,
}

impl WorkerQuestion {
    /// To tell something.
    pub(crate) fn get(paths: &'static [&'static str]) -> Self {
        Self {
            method: Method::GET,
            paths,
            body: Bytes::new(),
        }
    }

    /// To do something.
    pub(crate) fn post(paths: &'static [&'static str], body: Bytes) -> Self {
        Self {
            method: Method::POST,
            paths,
            body,
        }
    }

    /// Longest wait for an answer.
    fn timeout_after(&self) -> Duration {
        if self.method == Method::GET {
            QUERY_TIMEOUT
        } else {
            COMMAND_TIMEOUT
        }
    }
}

impl Proxy {
    /// The answer of the first ready worker to the first of `paths` that is not 404 there.
    pub(crate) async fn ask_first(
        &self,
        lane: Lane,
        paths: &'static [&'static str],
    ) -> Result<Answer, Error> {
        let worker = self
            .balancer()
            .fleet
            .first_ready()
            .ok_or(Error::NoWorkers)?;
        ask(&worker, lane, &WorkerQuestion::get(paths), COMMAND_TIMEOUT).await
    }

    /// Every worker's answer, in configuration order. One that is not ready is only asked to
    /// do things (POST), not to tell them.
    pub(crate) async fn ask_all(&self, lane: Lane, question: &WorkerQuestion) -> Vec<WorkerAnswer> {
        let workers = self.balancer().fleet.workers();
        let mut asked: Vec<BoxFuture<'_, WorkerAnswer>> = Vec::new();
        for worker in workers.iter() {
            asked.push(Box::pin(async move {
                let answer = if question.method == Method::GET && !worker.is_ready() {
                    Err(Error::NoWorkerResponse)
                } else {
                    ask(worker, lane, question, question.timeout_after()).await
                };
                WorkerAnswer {
                    worker: Arc::clone(worker),
                    answer,
                }
            }));
        }
        stream::iter(asked).buffered(FAN_OUT).collect().await
    }

    /// Passes `/abort_request` on to every worker that may have the request: only the engine
    /// that runs it knows its `rid`, the others ignore it. The first success is the reply, once
    /// all have answered. A request that waits in the gateway is not found.
    pub(crate) async fn abort(
        &self,
        context: RequestContext<'_>,
        request: Request<Incoming>,
    ) -> Result<Answer, Error> {
        let body = request_body::read(request.into_body(), self.max_payload()).await?;
        BodyFields::read(&body)?;
        let question = &WorkerQuestion::post(&["/abort_request"], body);
        let workers = self.balancer().fleet.workers();
        let mut asked: Vec<BoxFuture<'_, WorkerAnswer>> = Vec::new();
        for worker in workers.iter() {
            if worker.is_ready() || worker.load.requests() > 0 {
                asked.push(Box::pin(async move {
                    WorkerAnswer {
                        worker: Arc::clone(worker),
                        answer: ask(worker, context.lane, question, QUERY_TIMEOUT).await,
                    }
                }));
            }
        }
        let mut answers: Vec<WorkerAnswer> = stream::iter(asked)
            .buffer_unordered(FAN_OUT)
            .collect()
            .await;
        let success =
            |asked: &WorkerAnswer| asked.answer.as_ref().is_ok_and(|it| it.status.is_success());
        let best = answers.iter().position(success).unwrap_or(0);
        if answers.is_empty() {
            return Err(Error::NoWorkers);
        }
        answers.swap_remove(best).answer
    }
}

async fn ask(
    worker: &Arc<Worker>,
    lane: Lane,
    question: &WorkerQuestion,
    timeout_after: Duration,
) -> Result<Answer, Error> {
    let mut last = Err(Error::NoWorkerResponse);
    for path in question.paths {
        let asked = ask_endpoint(
            &worker.endpoint,
            lane,
            &question.method,
            path,
            &question.body,
        );
        last = match timeout(timeout_after, asked).await {
            Ok(Ok(answer)) if answer.status == StatusCode::NOT_FOUND => Ok(answer),
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(source)) => Err(Error::Upstream {
                worker: worker.url().to_string(),
                source,
            }),
            Err(_) => {
                let worker = worker.url().to_string();
                Err(Error::UpstreamTimeout {
                    worker,
                    seconds: timeout_after.as_secs(),
                })
            }
        };
        if last.is_err() {
            break;
        }
    }
    last
}
