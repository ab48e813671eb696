//! One attempt at one worker.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use routing::Outcome;
use tracing::debug;

use super::attempts::Attempts;
use super::body_fields::Opening;
use super::dispatcher::Dispatcher;
use super::explain::Explanation;
use super::pair::Coupling;
use super::rank_fields::write_rank;
use super::request::ProxyRequest;
use super::request_head;
use super::worker_call::{Answer, Watch, no_answer, read_answer, send_call};
use crate::balancer::InFlight;
use crate::fleet::Worker;
use crate::telemetry::{AttemptSpan, Leg};
use crate::upstream::{Call, CallHeaders, Line};

/// How one attempt ended.
pub(super) struct Attempt {
    pub(super) outcome: Outcome,
    pub(super) answer: Answer,
    /// The worker that the outcome is held against.
    pub(super) worker: Arc<Worker>,
    /// The share of the worker that answered.
    pub(super) in_flight: Box<InFlight>,
    /// The other worker of a pair, while the answer is relayed.
    pub(super) coupling: Option<Box<Coupling>>,
}

/// How the attempt ended whose answer the client gets.
pub(super) struct AttemptResult {
    pub(super) answer: Answer,
    pub(super) worker: Arc<Worker>,
    /// `None` when another attempt followed.
    pub(super) in_flight: Option<Box<InFlight>>,
    pub(super) coupling: Option<Box<Coupling>>,
    pub(super) explanation: Explanation,
}

/// How a call is made.
struct WatchedCall<'a> {
    watch: Watch,
    /// Lines of the gateway's.
    lines: &'a [Line],
}

/// Sends a request to one worker. A failure is recorded here; a success is recorded when its
/// body ends.
pub(super) async fn send(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    mut in_flight: Box<InFlight>,
    attempts: &mut Attempts,
) -> Attempt {
    let watch = Watch::begin(request, attempts);
    let span = request.context.log.begin_attempt(Leg::Answer, watch.begun);
    let call = WatchedCall {
        watch,
        lines: AttemptSpan::lines(span.as_deref()),
    };
    let (outcome, answer) = send_once(dispatcher, request, &in_flight.worker, call).await;
    AttemptSpan::answered(span, outcome);
    if let Err(error) = &answer {
        let worker_type = in_flight.worker.role().worker_type();
        dispatcher.metrics.worker_error(worker_type, error.code());
    }
    if !matches!(outcome, Outcome::Answered(101 | 200..=399)) {
        let worker = &in_flight.worker;
        let (request_id, principal) = (request.context.request_id, request.context.principal);
        debug!(?request_id, principal = principal.as_str(), worker = %worker.url(), %outcome, "attempt failed");
        note_failure(request, worker, outcome);
        // What was left of a request's time may have been too little for any worker.
        let hurried = outcome == Outcome::TimedOut
            && watch.begun.elapsed() < request.live.request_timeout / 2
            && !worker.is_lost();
        let verdict = if hurried { Outcome::Abandoned } else { outcome };
        attempts.finish(&mut in_flight, verdict);
    }
    Attempt {
        outcome,
        answer,
        worker: Arc::clone(&in_flight.worker),
        in_flight,
        coupling: None,
    }
}

/// An attempt has failed; the end of the request's log line says so.
pub(super) fn note_failure(request: &ProxyRequest<'_>, worker: &Worker, outcome: Outcome) {
    let info = worker.endpoint.model_info.load();
    let log = request.context.log;
    log.attempt_failed(outcome, &worker.metrics().name, &info.metrics.name);
}

async fn send_once(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    worker: &Arc<Worker>,
    WatchedCall { watch, lines }: WatchedCall<'_>,
) -> (Outcome, Answer) {
    let endpoint = &worker.endpoint;
    let path = request_head::path(request.parts, request.row.worker_path);
    let head = dispatcher.head(request, worker);
    let is_rank = worker.rank().is_some();
    let forwards = |name: &_| {
        if is_rank {
            head.forwards_unsteered(name)
        } else {
            head.forwards(name)
        }
    };
    let ranked = ranked_body(request, worker);
    let body = match &ranked {
        Some(parts) => parts.each_ref().map(|part| &**part).into(),
        None => request.body,
    };
    let call = Call {
        method: &request.parts.method,
        path: &path,
        headers: CallHeaders {
            steering: lines,
            ..head.call_headers(
                &request.parts.headers,
                &forwards,
                request.context.request_id,
            )
        },
        body,
        upgrade: request.row.upgrade,
    };
    // Pinned here: moved into the wait it would be there twice.
    let sending = pin!(send_call(endpoint, request.context.lane, &call));
    match watch
        .wait(&dispatcher.balancer.fleet, worker, sending)
        .await
    {
        Some(Ok(response)) => {
            let status = response.status().as_u16();
            dispatcher.metrics.upstream_response(status);
            let (outcome, answer) = read_answer(response, worker).await;
            if dispatcher.is_disputed(request, worker, status) {
                return (Outcome::Disputed(status), answer);
            }
            (outcome, answer)
        }
        Some(Err(source)) => no_answer(&dispatcher.metrics, worker, source),
        None => watch.timed_out(worker),
    }
}

/// The body that goes to a data-parallel rank.
fn ranked_body(request: &ProxyRequest<'_>, worker: &Worker) -> Option<[Bytes; 3]> {
    let open_body = request.open_body.filter(|_| worker.rank().is_some())?;
    let Opening { parts, comma } = open_body.opening();
    let mut tail = Vec::with_capacity(64);
    write_rank(&mut tail, comma, worker);
    tail.push(b'}');
    let [start, end] = parts;
    Some([start, end, tail.into()])
}
