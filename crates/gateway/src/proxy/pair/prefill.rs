//! The prefill leg: sent beside the decode leg, read to its end, and heard of only when it fails.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response};
use http_body_util::BodyExt;
use routing::Outcome;

use super::aborts::LegGuard;
use crate::balancer::{FirstByte, InFlight};
use crate::fleet::{Fleet, Worker};
use crate::lane::Lane;
use crate::proxy::events::{Start, start};
use crate::proxy::refusal::failure_in;
use crate::proxy::worker_call::{Answer, Watch, no_answer, read_answer, send_call};
use crate::telemetry::Metrics;
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
    pub(super) in_flight: InFlight,
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
    pub(super) in_flight: InFlight,
    pub(super) guard: LegGuard,
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
            let Self {
                mut in_flight,
                mut guard,
                ..
            } = self;
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
            let sending = send_call(&worker.endpoint, self.lane, &call);
            let sent = self.watch.wait(&self.fleet, &worker, sending).await;
            let read = match sent {
                None => Err(self.watch.timed_out(&worker)),
                Some(Err(source)) => Err(failed(&self.metrics, &worker, source)),
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
            match read {
                Ok(kept) => {
                    guard.set_ended();
                    in_flight.finish(Outcome::Answered(200));
                    Ok(kept)
                }
                Err((outcome, answer)) => {
                    if answer.is_ok() {
                        // It has said so itself.
                        guard.set_ended();
                    }
                    Err(PrefillFailure {
                        outcome,
                        answer,
                        in_flight,
                    })
                }
            }
        })
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
    /// A refusal, and an answer that breaks off.
    async fn read(
        &self,
        response: Box<Response<ResponseBody>>,
    ) -> Result<Bytes, (Outcome, Answer)> {
        let worker = self.worker;
        let mut response = match read_answer(response, worker).await {
            (Outcome::Answered(200..=299), Ok(response)) => response,
            failed => return Err(failed),
        };
        if let Some((status, _)) = first_failure(&response) {
            return Err((Outcome::Answered(status), Ok(response)));
        }
        let body = response.body_mut();
        let reading = async {
            let mut kept = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let piece = frame?.into_data().unwrap_or_default();
                if self.keep == Keep::Answer && kept.len() + piece.len() <= MAX_KEPT {
                    kept.extend_from_slice(&piece);
                }
            }
            Ok(kept.freeze())
        };
        match self.watch.wait(self.fleet, worker, reading).await {
            Some(Ok(kept)) => Ok(kept),
            Some(Err(source)) => Err(failed(self.metrics, worker, source)),
            None => Err(self.watch.timed_out(worker)),
        }
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
