//! One attempt at one pair.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use routing::{Outcome, PairFault};
use tracing::debug;

use super::aborts::LegGuard;
use super::coupling::Coupling;
use super::form::Form;
use super::ignored_headers;
use super::merge::{PrefillPart, PromptLogprobs};
use super::merging::Merging;
use super::metadata::{Ids, LegParts, Metadata, Terms};
use super::pair_workers::PairWorkers;
use super::prefill::{
    Keep, PrefillCall, PrefillFailure, PrefillLeg, first_failure, has_begun, owned_lines,
};
use crate::balancer::{InFlight, record_blame};
use crate::error::Error;
use crate::fleet::Worker;
use crate::proxy::attempt::{Attempt, note_failure};
use crate::proxy::attempts::Attempts;
use crate::proxy::dispatcher::Dispatcher;
use crate::proxy::refusal::message_in;
use crate::proxy::request::ProxyRequest;
use crate::proxy::request_head;
use crate::proxy::sse::is_event_stream;
use crate::proxy::worker_call::{Answer, Watch, no_answer, read_answer, send_call};
use crate::telemetry::{AttemptSpan, Leg};
use crate::upstream::{Call, CallHeaders, ResponseBody, UpstreamError};

/// A request's shares of both workers of a pair.
#[derive(Debug)]
pub(in crate::proxy) struct PairInFlight {
    pub(in crate::proxy) prefill: Box<InFlight>,
    pub(in crate::proxy) decode: Box<InFlight>,
}

/// How the decode leg ended, before any of it reached the client.
struct DecodeEnd {
    outcome: Outcome,
    answer: Answer,
    fault: PairFault,
}

/// Sends a request to both workers at once. The decode worker's answer is the client's. When either
/// leg fails the other one is ended, and the first failure counts: the second is its echo.
pub(in crate::proxy) async fn send(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    pair: PairInFlight,
    attempts: &mut Attempts,
) -> Attempt {
    let Some(source) = request.open_body else {
        // The workers have become a pair since the request was looked at.
        let error = Error::NoAvailableWorkers { retry_after: 1 };
        return refused(pair.decode, Outcome::Local, error);
    };
    let PairInFlight { prefill, decode } = pair;
    let watch = Watch::begin(request, attempts);
    let part = PrefillPart::of(source, request.row.label);
    let keep = part.map_or(Keep::Nothing, |_| Keep::Answer);
    let workers = PairWorkers {
        prefill: Arc::clone(&prefill.worker),
        decode: Arc::clone(&decode.worker),
    };
    let terms = Terms {
        ids: Ids::of_attempt(attempts.count),
        keep,
        form: Form::choose(dispatcher.pd_metadata, request.row, source, &workers, keep),
    };
    let mut metadata = Metadata::new(source, &workers, &dispatcher.rooms, &terms);
    let span = begin_span(request, watch, Leg::Prefill, &mut metadata.prefill);
    let decode_span = begin_span(request, watch, Leg::Answer, &mut metadata.decode);
    let rids = Arc::new(metadata.rids);
    let guard = |worker: &Worker| dispatcher.aborts.guard(&worker.endpoint, &rids);
    let decode_guard = guard(&decode.worker);
    let call = PrefillCall {
        fleet: Arc::clone(&dispatcher.balancer.fleet),
        metrics: Arc::clone(&dispatcher.metrics),
        lane: request.context.lane,
        method: request.parts.method.clone(),
        path: request_head::path(request.parts, request.row.worker_path).into_owned(),
        headers: prefill_lines(dispatcher, request, &prefill.worker, &metadata.prefill),
        body: metadata.prefill.body,
        keep,
        watch,
        guard: guard(&prefill.worker),
        in_flight: prefill,
        span,
    };
    let mut leg = Some(call.run());
    let mut ended = {
        let decoding = send_decode(dispatcher, request, &decode.worker, &metadata.decode, watch);
        couple(decoding, &mut leg, part).await
    };
    judge(dispatcher, request, &workers, terms.form, &mut ended).await;
    match ended {
        Ok((end, kept)) => {
            AttemptSpan::answered(decode_span, end.outcome);
            let legs = Legs {
                merging: merging(dispatcher, part, kept, &end).await,
                prefill: leg,
                decode,
                guard: decode_guard,
                workers,
            };
            legs.decode_ended(dispatcher, request, end, attempts)
        }
        Err(failure) => prefill_failed(dispatcher, request, failure, &workers, attempts),
    }
}

/// The span of a leg, where the request is traced; its worker learns of it.
fn begin_span(
    request: &ProxyRequest<'_>,
    watch: Watch,
    leg: Leg,
    parts: &mut LegParts,
) -> Option<Box<AttemptSpan>> {
    let span = request.context.log.begin_attempt(leg, watch.begun);
    parts
        .lines
        .extend_from_slice(AttemptSpan::lines(span.as_deref()));
    span
}

/// What the end of the leg that ended first says, beyond its status: its engine may not have read
/// its head, and other workers may take what this one refuses.
async fn judge(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    workers: &PairWorkers,
    form: Form,
    ended: &mut Result<(DecodeEnd, Bytes), PrefillFailure>,
) {
    let (worker, outcome, answer) = match ended {
        Ok((end, _)) => (&workers.decode, &mut end.outcome, &mut end.answer),
        Err(failure) => (&workers.prefill, &mut failure.outcome, &mut failure.answer),
    };
    if form != Form::Body {
        ignored_headers::notice(worker, outcome, answer).await;
    }
    if let Outcome::Answered(status) = *outcome
        && dispatcher.is_disputed(request, worker, status)
    {
        *outcome = Outcome::Disputed(status);
    }
}

/// What is left of both legs.
struct Legs {
    /// `None` once it has ended well.
    prefill: Option<PrefillLeg>,
    decode: Box<InFlight>,
    guard: LegGuard,
    merging: Option<Merging>,
    workers: PairWorkers,
}

/// What puts the prefill worker's part into a good answer of the decode worker's.
async fn merging(
    dispatcher: &Dispatcher,
    part: Option<PrefillPart>,
    prefill: Bytes,
    end: &DecodeEnd,
) -> Option<Merging> {
    let response = end.answer.as_ref().ok()?;
    let part = part.filter(|_| response.status().is_success())?;
    let pool = &dispatcher.cpu_pool;
    let read = move || PromptLogprobs::read(part, &prefill);
    let logprobs = pool.run(read).await.unwrap_or(PromptLogprobs::Missing);
    Some(if is_event_stream(response.headers()) {
        Merging::events(logprobs)
    } else {
        Merging::whole(logprobs, pool)
    })
}

fn refused(in_flight: Box<InFlight>, outcome: Outcome, error: Error) -> Attempt {
    Attempt {
        outcome,
        answer: Err(error),
        worker: Arc::clone(&in_flight.worker),
        in_flight,
        coupling: None,
    }
}

/// Waits for the decode leg's answer, or for the prefill leg to fail.
async fn couple(
    decoding: impl Future<Output = DecodeEnd>,
    leg: &mut Option<PrefillLeg>,
    part: Option<PrefillPart>,
) -> Result<(DecodeEnd, Bytes), PrefillFailure> {
    let mut decoding = pin!(decoding);
    let Some(mut prefill) = leg.take() else {
        return Ok((decoding.await, Bytes::new()));
    };
    tokio::select! {
        biased;
        ended = &mut prefill => {
            let kept = ended?;
            Ok((decoding.await, kept))
        }
        end = &mut decoding => {
            if part.is_some() && matches!(end.outcome, Outcome::Answered(200..=399)) {
                // A part of its answer belongs into this one.
                return Ok((end, prefill.await?));
            }
            *leg = Some(prefill);
            Ok((end, Bytes::new()))
        }
    }
}

/// The prefill leg has failed, and the decode leg has been dropped.
fn prefill_failed(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    failure: PrefillFailure,
    workers: &PairWorkers,
    attempts: &mut Attempts,
) -> Attempt {
    let PrefillFailure {
        outcome,
        answer,
        mut in_flight,
    } = failure;
    let fault = answer
        .as_ref()
        .map_or(PairFault::Reporter, |it| fault_in(it));
    note(dispatcher, request, &in_flight, outcome, &answer);
    // Both may have waited for each other.
    let both_silent = outcome == Outcome::TimedOut && !in_flight.worker.is_lost();
    let verdict = if both_silent {
        Outcome::Abandoned
    } else {
        verdict(fault, outcome)
    };
    attempts.finish(&mut in_flight, verdict);
    let mut blamed = &workers.prefill;
    if fault == PairFault::Partner {
        // It was called, and did not come.
        blamed = &workers.decode;
        record_blame(&dispatcher.balancer.fleet, blamed, outcome);
    }
    Attempt {
        outcome,
        answer: answer.and_then(|response| as_answer(response, &workers.prefill)),
        worker: Arc::clone(blamed),
        in_flight,
        coupling: None,
    }
}

/// What an outcome says of the worker that reports it.
fn verdict(fault: PairFault, outcome: Outcome) -> Outcome {
    match fault {
        PairFault::Reporter => outcome,
        PairFault::Partner | PairFault::Neither => Outcome::Abandoned,
    }
}

impl Legs {
    /// The decode leg has answered, or failed.
    fn decode_ended(
        self,
        dispatcher: &Dispatcher,
        request: &ProxyRequest<'_>,
        end: DecodeEnd,
        attempts: &mut Attempts,
    ) -> Attempt {
        let Self {
            prefill,
            decode: mut in_flight,
            mut guard,
            merging,
            workers,
        } = self;
        let DecodeEnd {
            outcome,
            answer,
            fault,
        } = end;
        if matches!(outcome, Outcome::Answered(200..=399)) {
            let waits = answer.as_ref().is_ok_and(|it| !has_begun(it));
            if !waits {
                guard.set_begun();
            }
            return Attempt {
                outcome,
                answer: answer.map(|response| unmeasured(response, merging.as_ref())),
                worker: workers.decode,
                in_flight,
                coupling: Some(Box::new(Coupling {
                    prefill,
                    decode: guard,
                    waits,
                    merging,
                })),
            };
        }
        if answer.is_ok() {
            guard.set_ended();
        }
        note(dispatcher, request, &in_flight, outcome, &answer);
        let fault = match fault {
            // A prefill worker that has done its part is not to blame.
            PairFault::Partner if prefill.is_none() => PairFault::Reporter,
            // Both may have waited for each other.
            _ if outcome == Outcome::TimedOut && prefill.is_some() => PairFault::Neither,
            fault => fault,
        };
        // Ends the prefill leg.
        drop(prefill);
        attempts.finish(&mut in_flight, verdict(fault, outcome));
        let mut blamed = workers.decode;
        let answer = answer.and_then(|response| as_answer(response, &blamed));
        if fault == PairFault::Partner {
            blamed = workers.prefill;
            record_blame(&dispatcher.balancer.fleet, &blamed, outcome);
        }
        Attempt {
            outcome,
            answer,
            worker: blamed,
            in_flight,
            coupling: None,
        }
    }
}

/// The answer without its length, where that changes.
fn unmeasured(
    mut response: Box<Response<ResponseBody>>,
    merging: Option<&Merging>,
) -> Box<Response<ResponseBody>> {
    if merging.is_some() {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

fn note(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    in_flight: &InFlight,
    outcome: Outcome,
    answer: &Answer,
) {
    if let Err(error) = answer {
        let worker_type = in_flight.worker.role().worker_type();
        dispatcher.metrics.worker_error(worker_type, error.code());
    }
    note_failure(request, &in_flight.worker, outcome);
    let (worker, role) = (in_flight.worker.url(), in_flight.worker.role());
    debug!(%worker, ?role, %outcome, "leg of a pair failed");
}

/// A failure that came as the first event of a stream has a status, for nothing has been sent; what
/// the client did wrong passes as it is.
fn as_answer(response: Box<Response<ResponseBody>>, worker: &Worker) -> Answer {
    match first_failure(&response) {
        Some((status @ 500.., message)) => {
            let worker = worker.url().to_string();
            Err(Error::PairFailed {
                worker,
                status: StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
                message,
            })
        }
        _ => Ok(response),
    }
}

/// Whose fault a refusal is, by its message.
fn fault_in(response: &Response<ResponseBody>) -> PairFault {
    let message = first_failure(response).map(|(_, message)| message);
    let ahead = || response.body().ahead().and_then(message_in);
    let message = message.or_else(ahead).unwrap_or_default();
    PairFault::of_message(&message)
}

async fn send_decode(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    worker: &Arc<Worker>,
    parts: &LegParts,
    watch: Watch,
) -> DecodeEnd {
    let path = request_head::path(request.parts, request.row.worker_path);
    let client = &request.parts.headers;
    let head = dispatcher.head(request, worker);
    let forwards = |name: &_| head.forwards_unsteered(name);
    let call = Call {
        method: &request.parts.method,
        path: &path,
        headers: CallHeaders {
            steering: &parts.lines,
            ..head.call_headers(client, &forwards, request.context.request_id)
        },
        body: parts.body.each_ref().map(|part| &**part).into(),
        upgrade: None,
    };
    let sending = pin!(send_call(&worker.endpoint, request.context.lane, &call));
    let fleet = &dispatcher.balancer.fleet;
    let (outcome, answer) = match watch.wait(fleet, worker, sending).await {
        // Nothing that a client can read has come: another pair may answer.
        Some(Ok(response)) if response.body().broke_ahead() => {
            no_answer(&dispatcher.metrics, worker, UpstreamError::NoResponse)
        }
        Some(Ok(response)) => {
            let status = response.status().as_u16();
            dispatcher.metrics.upstream_response(status);
            read_answer(response, worker).await
        }
        Some(Err(source)) => no_answer(&dispatcher.metrics, worker, source),
        None => watch.timed_out(worker),
    };
    let Ok(response) = &answer else {
        let fault = PairFault::Reporter;
        return DecodeEnd {
            outcome,
            answer,
            fault,
        };
    };
    let first = first_failure(response).map(|(status, _)| Outcome::Answered(status));
    DecodeEnd {
        fault: fault_in(response),
        outcome: first.unwrap_or(outcome),
        answer,
    }
}

/// The head of the prefill leg.
fn prefill_lines(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    worker: &Worker,
    parts: &LegParts,
) -> HeaderMap {
    let client = &request.parts.headers;
    let head = dispatcher.head(request, worker);
    let forwards = |name: &_| head.forwards_unsteered(name);
    owned_lines(CallHeaders {
        steering: &parts.lines,
        ..head.call_headers(client, &forwards, request.context.request_id)
    })
}
