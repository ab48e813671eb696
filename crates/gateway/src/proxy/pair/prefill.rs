//! The prefill leg: sent beside the decode leg, read to its end, and heard of only when it fails.

use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use routing::Outcome;

use super::aborts::LegGuard;
use crate::balancer::{FirstByte, InFlight};
use crate::error::Error;
use crate::fleet::{Fleet, Worker};
use crate::lane::Lane;
use crate::proxy::events::{Start, start};
use crate::proxy::refusal::failure_in;
use crate::proxy::sse::is_event_stream;
use crate::proxy::worker_call::{Answer, Watch, no_answer, read_answer, send_call};
use crate::telemetry::{AttemptSpan, Metrics};
use crate::upstream::{Call, CallHeaders, ResponseBody, UpstreamError};

/// Most of an answer that is kept, bytes.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// A prefill leg under way, with its answer, where that is kept. Dropping it ends the request at its
/// worker.
pub(super) type PrefillLeg = BoxFuture<'static, Result<Bytes, PrefillFailure>>;

/// Why a prefill leg failed.
#[derive(Debug)]
pub(super) struct PrefillFailure {
    pub(super) outcome: Outcome,
    pub(super) answer: Answer,
    pub(super) in_flight: Box<InFlight>,
}

/// All that a prefill leg needs: it may outlive the attempt, in the body of the reply.
pub(super) struct PrefillCall {
    pub(super) fleet: Arc<Fleet>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) lane: Lane,
    pub(super) method: Method,
    pub(super) path: String,
    /// The lines that go to the worker, the gateway's included.
    pub(super) headers: HeaderMap,
    pub(super) body: [Bytes; 3],
    pub(super) keep: Keep,
    pub(super) watch: Watch,
    pub(super) in_flight: Box<InFlight>,
    pub(super) guard: LegGuard,
    /// Where the request is traced.
    pub(super) span: Option<Box<AttemptSpan>>,
}

/// Whether a prefill worker's answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Nothing,
    Answer,
}

impl PrefillCall {
    /// Sends it and reads the whole answer.
    pub(super) fn run(self) -> PrefillLeg {
        Box::pin(async move {
            let (mut in_flight, mut guard, span) = (self.in_flight, self.guard, self.span);
            let worker = Arc::clone(&in_flight.worker);
            let call = Call {
                method: &self.method,
                path: &self.path,
                headers: CallHeaders {
                    client: &self.headers,
                    forwards: &|_| true,
                    added: [None; 3],
                    steering: &[],
                },
                body: self.body.each_ref().map(|part| &**part).into(),
                upgrade: None,
            };
            let sending = pin!(send_call(&worker.endpoint, self.lane, &call));
            let sent = self.watch.wait(&self.fleet, &worker, sending).await;
            let read = match sent {
                None => Err(self.watch.timed_out(&worker).into()),
                Some(Err(source)) => Err(failed(&self.metrics, &worker, source).into()),
                Some(Ok(response)) => {
                    in_flight.first_byte(FirstByte::OfWhole);
                    let reading = Reading {
                        worker: &worker,
                        fleet: &self.fleet,
                        metrics: &self.metrics,
                        watch: self.watch,
                        keep: self.keep,
                    };
                    reading.read(response).await
                }
            };
            let failure = read.as_ref().err().map(|broken| broken.outcome);
            AttemptSpan::ended(span, failure.unwrap_or(Outcome::Answered(200)));
            match read {
                Ok(kept) => {
                    guard.set_ended();
                    in_flight.finish(Outcome::Answered(200));
                    observe_duration(self.watch, &worker);
                    Ok(kept)
                }
                // The decode worker has the prompt, and its own leg says how it fares.
                Err(broken) if broken.prompt_passed && self.keep == Keep::Nothing => {
                    in_flight.finish(amid_answer(broken.outcome));
                    Ok(Bytes::new())
                }
                Err(broken) => {
                    if broken.answer.is_ok() {
                        // It has said so itself.
                        guard.set_ended();
                    }
                    Err(PrefillFailure {
                        outcome: broken.outcome,
                        answer: broken.answer,
                        in_flight,
                    })
                }
            }
        })
    }
}

/// A prefill leg that was begun then has ended well.
fn observe_duration(watch: Watch, worker: &Worker) {
    let took = watch.begun.elapsed().as_secs_f64();
    let info = worker.endpoint.model_info.load();
    info.metrics.prefill().observe(took);
}

/// An answer that is none, or not whole.
struct Broken {
    outcome: Outcome,
    answer: Answer,
    /// The decode worker had the whole prompt before.
    prompt_passed: bool,
}

impl From<(Outcome, Answer)> for Broken {
    fn from(end: (Outcome, Answer)) -> Self {
        let (outcome, answer) = end;
        Self {
            outcome,
            answer,
            prompt_passed: false,
        }
    }
}

/// How an answer is read.
struct Reading<'a> {
    worker: &'a Worker,
    fleet: &'a Fleet,
    metrics: &'a Metrics,
    watch: Watch,
    keep: Keep,
}

impl Reading<'_> {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// A refusal, an answer that breaks off, and one that is too large to be kept.
    async fn read(&self, response: Box<Response<ResponseBody>>) -> Result<Bytes, Broken> {
        self.metrics.upstream_response(response.status().as_u16());
        let worker = self.worker;
        let mut response = match read_answer(response, worker).await {
            (Outcome::Answered(200..=299), Ok(response)) => response,
            failed => return Err(failed.into()),
        };
        if let Some((status, _)) = first_failure(&response) {
            return Err((Outcome::Answered(status), Ok(response)).into());
        }
        let prompt_passed = has_begun(&response);
        let broken = |(outcome, answer)| Broken {
            outcome,
            answer,
            prompt_passed,
        };
        let body = response.body_mut();
        let reading = pin!(async {
            let mut kept = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let piece = frame?.into_data().unwrap_or_default();
                if self.keep == Keep::Answer {
                    if kept.len() + piece.len() > MAX_KEPT {
                        return Ok(None);
                    }
                    kept.extend_from_slice(&piece);
                }
            }
            Ok(Some(kept.freeze()))
        });
        match self.watch.wait(self.fleet, worker, reading).await {
            Some(Ok(Some(kept))) => Ok(kept),
            Some(Ok(None)) => Err((Outcome::Abandoned, Err(too_large(worker))).into()),
            Some(Err(source)) => Err(broken(failed(self.metrics, worker, source))),
            None => Err(broken(self.watch.timed_out(worker))),
        }
    }
}

/// What a failure says of the worker when the client's answer is under way: no other worker gets
/// the request, so nothing more will show whose fault a lost connection was.
pub(super) fn amid_answer(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::NoResponse => Outcome::Truncated,
        other => other,
    }
}

/// Whether a good answer has begun to say something. Both workers do so when the decode worker has
/// the prompt.
pub(super) fn has_begun(response: &Response<ResponseBody>) -> bool {
    if !is_event_stream(response.headers()) {
        return true;
    }
    let ahead = response.body().ahead().unwrap_or_default();
    matches!(start(ahead), Start::Event(_))
}

/// An answer that would have to be kept is too large. Another worker's would be, too.
fn too_large(worker: &Worker) -> Error {
    Error::PairFailed {
        worker: worker.url().to_string(),
        status: StatusCode::BAD_GATEWAY,
        message: format!("log probabilities of the prompt take more than {MAX_KEPT} bytes"),
    }
}

/// The failure in the first event of a stream: its status and message.
pub(super) fn first_failure(response: &Response<ResponseBody>) -> Option<(u16, String)> {
    let ahead = response.body().ahead()?;
    let event = match start(ahead) {
        Start::Event(event) => event,
        Start::Unfinished | Start::Silent => return None,
    };
    let failure = failure_in(event)?;
    Some((failure.status.as_u16(), failure.message))
}

/// What a failed call says of the leg.
fn failed(metrics: &Metrics, worker: &Worker, source: UpstreamError) -> (Outcome, Answer) {
    match no_answer(metrics, worker, source) {
        // The client has received nothing of this leg.
        (Outcome::Truncated, answer) => (Outcome::NoResponse, answer),
        failed => failed,
    }
}

/// The lines of a client's head that pass to a leg, with the gateway's own.
pub(super) fn owned_lines(headers: CallHeaders<'_>) -> HeaderMap {
    let mut lines = HeaderMap::with_capacity(headers.client.len() + 3 + headers.steering.len());
    for (name, value) in headers.iter() {
        lines.append(name, HeaderValue::clone(value));
    }
    lines.remove(header::ACCEPT_ENCODING);
    lines
}
