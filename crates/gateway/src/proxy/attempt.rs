//! One attempt at one worker.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode, header};
use routing::{Outcome, Retry};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::attempts::Attempts;
use super::dispatcher::Dispatcher;
use super::explain::Explanation;
use super::request::ProxyRequest;
use super::request_head;
use crate::balancer::InFlight;
use crate::error::Error;
use crate::fleet::{Worker, request_probe};
use crate::upstream::{Call, ResponseBody};

/// Most of a refusal that is read before it is known whether another worker is asked, bytes.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;
/// Longest wait for that.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a silent worker is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A response, or why there is none.
type Answer = Result<Response<ResponseBody>, Error>;

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
    if !matches!(outcome, Outcome::Answered(200..=399)) {
        let worker = &in_flight.worker;
        let (request_id, principal) = (request.context.request_id, request.context.principal);
        debug!(?request_id, ?principal, worker = %worker.url(), ?outcome, "attempt failed");
        // What was left of a request's time may have been too little for any worker.
        let hurried = outcome == Outcome::TimedOut
            && begun.elapsed() < request.live.request_timeout / 2
            && !worker.is_unreachable();
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
        body: (&**request.body).into(),
    };
    let sending = endpoint.client.send(request.context.lane, &call);
    match watch.wait(dispatcher, worker, sending).await {
        Some(Ok(mut response)) => {
            let outcome = read_refusal(&mut response).await;
            let status = response.status().as_u16();
            dispatcher.metrics.upstream_response(status);
            (outcome, Ok(response))
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
            if check >= self.deadline || worker.is_unreachable() {
                return None;
            }
            request_probe(&dispatcher.balancer.fleet, &worker.endpoint);
            check += CHECK_INTERVAL;
        }
    }
}

/// What a response says of the attempt. A refusal is read ahead, so that its connection is free
/// while another worker is asked.
async fn read_refusal(response: &mut Response<ResponseBody>) -> Outcome {
    let outcome = Outcome::Answered(response.status().as_u16());
    if outcome.consequence().retry == Retry::No {
        return outcome;
    }
    let names_delay = response.headers().contains_key(header::RETRY_AFTER);
    let body = response.body_mut();
    let why = body.read_ahead(MAX_REFUSAL_BYTES, REFUSAL_TIMEOUT).await;
    let unavailable = outcome == Outcome::Answered(StatusCode::SERVICE_UNAVAILABLE.as_u16());
    if unavailable && (names_delay || says_full(why)) {
        Outcome::QueueFull
    } else {
        outcome
    }
}

/// Whether a worker's 503 says that it has too much to do, as SGLang's "The request queue is
/// full." does.
fn says_full(why: &[u8]) -> bool {
    let why = String::from_utf8_lossy(why).to_ascii_lowercase();
    let queue = why.contains("queue")
        && ["full", "limit", "exceed"]
            .iter()
            .any(|word| why.contains(word));
    queue || why.contains("overloaded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_queue_is_distinguished_from_other_refusals() {
        for full in [
            r#"{"message":"The request queue is full."}"#,
            "Queue limit reached",
            "Server overloaded",
        ] {
            assert!(says_full(full.as_bytes()), "{full}");
        }
        for other in [
            "",
            "upstream connect error",
            "queue",
            "disk full",
            "shutting down",
        ] {
            assert!(!says_full(other.as_bytes()), "{other}");
        }
    }
}
