//! Questions to workers that are not inference: one worker's answer, or those of all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use tokio::time::{sleep, timeout};

use super::body_fields::BodyFields;
use crate::error::Error;
use crate::fleet::{Fleet, Worker, request_probe};
use crate::upstream::{ControlClient, ControlRequest, PrivateAnswer};

/// Workers asked at once.
pub(super) const FAN_OUT: usize = 32;
/// Longest wait for an answer to a question that costs the worker nothing.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a generation: a worker's check alone gives itself 20 s.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(45);
/// Longest wait for a worker to do what takes no generation.
pub(super) const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a worker that is not ready: about that for a connection.
const NOT_READY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a worker may be silent before another one is asked beside it.
const STAGGER: Duration = Duration::from_secs(1);
/// Workers asked the same question beside each other.
const MAX_STAGGERED: usize = 4;

/// Asks workers, with the gateway's own credentials.
#[derive(Clone, Debug)]
pub(crate) struct FanOut {
    fleet: Arc<Fleet>,
    client: ControlClient,
}

/// A worker and what it answered, if it did.
#[derive(Debug)]
pub(crate) struct WorkerAnswer {
    pub(crate) worker: Arc<Worker>,
    pub(crate) answer: Result<PrivateAnswer, Error>,
}

/// What workers are asked.
#[derive(Clone, Debug)]
pub(crate) struct WorkerQuery {
    method: Method,
    /// The first that a worker has is the one.
    paths: &'static [&'static str],
    /// JSON, or nothing.
    body: Bytes,
    /// Longest wait for an answer.
    timeout: Duration,
}

impl WorkerQuery {
    /// To read something.
    pub(crate) fn get(paths: &'static [&'static str]) -> Self {
        Self {
            method: Method::GET,
            paths,
            body: Bytes::new(),
            timeout: QUERY_TIMEOUT,
        }
    }

    /// To do something.
    pub(crate) fn post(paths: &'static [&'static str], body: Bytes) -> Self {
        Self {
            method: Method::POST,
            paths,
            body,
            timeout: ORDER_TIMEOUT,
        }
    }

    /// The same question, with this longest wait for an answer.
    pub(crate) fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

/// Whether an answer is one that another worker would hardly better.
fn is_good(answer: &Result<PrivateAnswer, Error>) -> bool {
    answer.as_ref().is_ok_and(|it| !it.status.is_server_error())
}

impl FanOut {
    pub(crate) fn new(fleet: Arc<Fleet>, client: ControlClient) -> Self {
        Self { fleet, client }
    }

    /// The first good answer of the ready workers, to the first of the question's paths that is
    /// not 404 there. They are asked in turn: the next one at once after a failure, or beside a
    /// worker that is silent for a second, which is probed.
    pub(crate) async fn ask_first(&self, question: &WorkerQuery) -> Result<PrivateAnswer, Error> {
        let mut ready = Vec::clone(&self.fleet.workers());
        ready.retain(|worker| worker.is_ready());
        let mut ready = ready.into_iter().peekable();
        let mut asked: FuturesUnordered<BoxFuture<'_, _>> = FuturesUnordered::new();
        let mut silent: Vec<Arc<Worker>> = Vec::new();
        let mut last = Err(Error::NoWorkers);
        loop {
            if asked.len() < MAX_STAGGERED
                && let Some(worker) = ready.next()
            {
                silent.push(Arc::clone(&worker));
                asked.push(Box::pin(async move { self.ask(&worker, question).await }));
            }
            let more = ready.peek().is_some() && asked.len() < MAX_STAGGERED;
            let answer = tokio::select! {
                answer = asked.next() => answer,
                () = sleep(STAGGER), if more => {
                    for worker in &silent {
                        request_probe(&self.fleet, &worker.endpoint);
                    }
                    continue;
                }
            };
            match answer {
                Some(answer) if is_good(&answer) => return answer,
                Some(answer) => last = answer,
                None if ready.peek().is_none() => return last,
                None => {}
            }
        }
    }

    /// Every worker's answer, in configuration order. A worker that is not ready is only asked
    /// to do things (POST), not to show them.
    pub(crate) async fn ask_all(&self, question: &WorkerQuery) -> Vec<WorkerAnswer> {
        let workers = self.fleet.workers();
        let mut asked: Vec<BoxFuture<'_, WorkerAnswer>> = Vec::new();
        for worker in workers.iter() {
            asked.push(Box::pin(async move {
                let answer = if question.method == Method::GET && !worker.is_ready() {
                    Err(Error::NoWorkerResponse)
                } else if worker.is_ready() {
                    self.ask(worker, question).await
                } else {
                    let brief = question.timeout.min(NOT_READY_TIMEOUT);
                    self.ask(worker, &question.clone().within(brief)).await
                };
                WorkerAnswer {
                    worker: Arc::clone(worker),
                    answer,
                }
            }));
        }
        stream::iter(asked).buffered(FAN_OUT).collect().await
    }

    /// Passes the body of an `/abort_request` on to every worker that may have the request: only
    /// the engine that runs it knows its `rid`, the others ignore it. The first success is the
    /// answer, once all have answered. A request that waits in the gateway is not found.
    pub(crate) async fn abort(&self, body: Bytes) -> Result<PrivateAnswer, Error> {
        BodyFields::read(&body)?;
        let question = &WorkerQuery {
            timeout: QUERY_TIMEOUT,
            ..WorkerQuery::post(&["/abort_request"], body)
        };
        let workers = self.fleet.workers();
        let mut asked: Vec<BoxFuture<'_, Result<PrivateAnswer, Error>>> = Vec::new();
        for worker in workers.iter() {
            if worker.is_ready() || worker.load.requests() > 0 {
                asked.push(Box::pin(self.ask(worker, question)));
            }
        }
        let answers = stream::iter(asked).buffer_unordered(FAN_OUT);
        let mut answers: Vec<_> = answers.collect().await;
        let success = |answer: &Result<PrivateAnswer, Error>| {
            answer.as_ref().is_ok_and(|it| it.status.is_success())
        };
        let best = answers.iter().position(success).unwrap_or(0);
        if answers.is_empty() {
            return Err(Error::NoWorkers);
        }
        answers.swap_remove(best)
    }

    async fn ask(&self, worker: &Worker, question: &WorkerQuery) -> Result<PrivateAnswer, Error> {
        let mut last = Err(Error::NoWorkerResponse);
        for path in question.paths {
            let request = ControlRequest {
                body: question.body.clone(),
                ..worker.endpoint.question(&question.method, path)
            };
            let url = || worker.url().to_string();
            match timeout(question.timeout, self.client.send(request)).await {
                Ok(Ok(answer)) if answer.status == StatusCode::NOT_FOUND => last = Ok(answer),
                Ok(answer) => {
                    let failed = |source| Error::Upstream {
                        worker: url(),
                        source,
                    };
                    return answer.map_err(failed);
                }
                Err(_) => {
                    request_probe(&self.fleet, &worker.endpoint);
                    return Err(Error::UpstreamTimeout {
                        worker: url(),
                        seconds: question.timeout.as_secs(),
                    });
                }
            }
        }
        last
    }
}
