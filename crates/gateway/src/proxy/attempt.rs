//! One attempt at one worker.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use routing::Outcome;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::attempts::Attempts;
use super::dispatcher::Dispatcher;
use super::events::{Start, start};
use super::explain::Explanation;
use super::refusal::{read_refusal, refusal_in};
use super::request::ProxyRequest;
use super::request_head;
use super::sse::is_event_stream;
use crate::balancer::InFlight;
use crate::error::Error;
use crate::fleet::{Endpoint, Worker, request_probe};
use crate::lane::Lane;
use crate::upstream::{Call, ResponseBody, UpstreamError};

/// Most of a stream's first event that is waited for, bytes.
const MAX_EVENT_BYTES: usize = 16 * 1024;
/// How long comments before the first event are held back: a client that waits for signs of life
/// gets them late, but gets them.
const MAX_COMMENT_WAIT: Duration = Duration::from_secs(1);
/// How often a silent worker is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A response, or why there is none.
type Answer = Result<Box<Response<ResponseBody>>, Error>;

/// How one attempt ended.
pub(super) struct Attempt {
    pub(super) outcome: Outcome,
    pub(super) answer: Answer,
    pub(super) in_flight: InFlight,
}

/// How the attempt ended whose answer the client gets.
pub(super) struct AttemptResult {
    pub(super) answer: Answer,
    pub(super) worker: Arc<Worker>,
    /// `None` when another attempt followed.
    pub(super) in_flight: Option<InFlight>,
    pub(super) explanation: Explanation,
}

/// When a worker that is silent is doubted, and when it is given up.
#[derive(Clone, Copy)]
struct Watch {
    begun: Instant,
    deadline: Instant,
    probe_after: Duration,
}

/// Sends a request to one worker. A failure is recorded here; a success is recorded when its
/// body ends.
pub(super) async fn send(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    mut in_flight: InFlight,
    attempts: &mut Attempts,
) -> Attempt {
    let begun = Instant::now();
    let deadline = begun + request.live.request_timeout;
    let watch = Watch {
        begun,
        deadline: *attempts.deadline.get_or_insert(deadline),
        probe_after: request.live.probe_after,
    };
    let (outcome, answer) = send_once(dispatcher, request, &in_flight.worker, watch).await;
    if let Err(error) = &answer {
        dispatcher.metrics.worker_error(error);
    }
    if !matches!(outcome, Outcome::Answered(101 | 200..=399)) {
        let worker = &in_flight.worker;
        let (request_id, principal) = (request.context.request_id, request.context.principal);
        debug!(?request_id, ?principal, worker = %worker.url(), ?outcome, "attempt failed");
        // What was left of a request's time may have been too little for any worker.
        let hurried = outcome == Outcome::TimedOut
            && begun.elapsed() < request.live.request_timeout / 2
            && !worker.is_lost();
        let verdict = if hurried { Outcome::Abandoned } else { outcome };
        attempts.finish(&mut in_flight, verdict);
    }
    Attempt {
        outcome,
        answer,
        in_flight,
    }
}

async fn send_once(
    dispatcher: &Dispatcher,
    request: &ProxyRequest<'_>,
    worker: &Arc<Worker>,
    watch: Watch,
) -> (Outcome, Answer) {
    let endpoint = &worker.endpoint;
    let path = request_head::path(request.parts, request.row.worker_path);
    let head = dispatcher.rules.head(endpoint, &request.parts.headers);
    let forwards = |name: &_| head.forwards(name);
    let call = Call {
        method: &request.parts.method,
        path: &path,
        headers: head.call_headers(
            &request.parts.headers,
            &forwards,
            request.context.request_id,
        ),
        body: request.body,
        upgrade: request.row.upgrade,
    };
    let sending = send_call(endpoint, request.context.lane, &call);
    match watch.wait(dispatcher, worker, sending).await {
        Some(Ok(response)) => {
            let status = response.status().as_u16();
            dispatcher.metrics.upstream_response(status);
            let (outcome, answer) = read_answer(response, worker).await;
            let peers_differ = match status {
                401 | 403 => !head.shows_clients_key(&request.parts.headers),
                404 => dispatcher.is_served(request.row),
                _ => false,
            };
            if peers_differ {
                return (Outcome::Disputed(status), answer);
            }
            (outcome, answer)
        }
        Some(Err(source)) => {
            if let Some(lacking) = source.local_fault() {
                dispatcher.metrics.local_fault(lacking, &source);
            }
            let (worker, outcome) = (worker.url().to_string(), source.outcome());
            (outcome, Err(Error::Upstream { worker, source }))
        }
        None => {
            let (worker, seconds) = (worker.url().to_string(), watch.begun.elapsed().as_secs());
            let error = Error::UpstreamTimeout { worker, seconds };
            (Outcome::TimedOut, Err(error))
        }
    }
}

/// Sends a call and waits for what the client gets first: the head of the response, and of a
/// stream of events the first of them, which may be a refusal.
async fn send_call(
    endpoint: &Endpoint,
    lane: Lane,
    call: &Call<'_>,
) -> Result<Box<Response<ResponseBody>>, UpstreamError> {
    let mut response = endpoint.client.send(lane, call).await?;
    if response.status() == StatusCode::OK && is_event_stream(response.headers()) {
        let body = response.body_mut();
        let begun = |read: &[u8]| start(read) != Start::Unfinished;
        body.read_until(begun, MAX_EVENT_BYTES).await?;
        if body
            .ahead()
            .is_some_and(|read| start(read) == Start::Silent)
        {
            let complete = |read: &[u8]| matches!(start(read), Start::Event(_));
            // Rare, so boxed: every attempt's future would be larger.
            Box::pin(body.read_on(complete, MAX_EVENT_BYTES, MAX_COMMENT_WAIT)).await?;
        }
    }
    Ok(response)
}

/// What a response says of the attempt, and what the client would get.
async fn read_answer(
    mut response: Box<Response<ResponseBody>>,
    worker: &Worker,
) -> (Outcome, Answer) {
    let ahead = response.body().ahead();
    let first = ahead.map(|ahead| match start(ahead) {
        Start::Event(event) => event,
        Start::Unfinished | Start::Silent => ahead,
    });
    if let Some(refusal) = first.and_then(refusal_in) {
        let error = Error::WorkerOverloaded {
            worker: worker.url().to_string(),
            status: refusal.status,
            message: refusal.message,
        };
        return (Outcome::QueueFull, Err(error));
    }
    let outcome = read_refusal(&mut response).await;
    (outcome, Ok(response))
}

impl Watch {
    /// Waits for a response head: to the deadline, or until the worker turns out to be
    /// unreachable. A long silence has the worker probed.
    async fn wait<T>(
        self,
        dispatcher: &Dispatcher,
        worker: &Worker,
        sending: impl Future<Output = T>,
    ) -> Option<T> {
        let mut sending = pin!(sending);
        let mut check = self.begun + self.probe_after;
        loop {
            if let Ok(sent) = timeout_at(check.min(self.deadline), sending.as_mut()).await {
                return Some(sent);
            }
            if check >= self.deadline || worker.is_lost() {
                return None;
            }
            request_probe(&dispatcher.balancer.fleet, &worker.endpoint);
            check += CHECK_INTERVAL;
        }
    }
}
