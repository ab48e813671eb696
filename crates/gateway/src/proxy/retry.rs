//! Trying one worker after another, until one answers or trying on makes no sense.

use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header, request};
use routing::{Branch, Outcome, Request as RoutingRequest, Retry, SeededRng};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::attempts::Attempts;
use super::explain::Explanation;
use super::response_body::RequestTimer;
use super::{Proxy, RequestContext, request_head};
use crate::endpoint::Inference;
use crate::error::Error;
use crate::fleet::{Constraints, InFlight, QueueError, SelectError, Selection, Worker, WorkerBody};
use crate::wire::UpstreamError;

/// Most of a refusal that is read before it is known whether somebody else is asked, bytes.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;
/// Longest wait for that.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a silent worker is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A request, as it goes to whichever worker.
#[derive(Clone, Copy)]
pub(super) struct ProxyRequest<'a> {
    pub(super) row: &'static Inference,
    pub(super) context: RequestContext<'a>,
    pub(super) parts: &'a request::Parts,
    pub(super) body: &'a Bytes,
    pub(super) routing: &'a RoutingRequest<'a>,
    /// The client's `X-SMG-Target-Worker`.
    pub(super) target: Option<&'a str>,
    pub(super) streaming: bool,
}

/// A response, or why there is none.
type Answer = Result<Response<WorkerBody>, Error>;

/// What came of a try.
pub(super) struct AttemptResult {
    pub(super) answer: Answer,
    pub(super) worker: Arc<Worker>,
    /// `None` once another try follows.
    pub(super) in_flight: Option<InFlight>,
    pub(super) explanation: Explanation,
}

impl Proxy {
    /// Tries workers for a request; what came of the last one is the answer.
    ///
    /// # Errors
    /// When no worker could be tried at all.
    pub(super) async fn send_with_retries(
        &self,
        request: ProxyRequest<'_>,
        record: &mut Option<RequestTimer>,
    ) -> Result<AttemptResult, Error> {
        let mut attempts = Attempts::default();
        let tried = self.attempt_in_turn(request, record, &mut attempts).await;
        attempts.blame();
        tried
    }

    async fn attempt_in_turn(
        &self,
        request: ProxyRequest<'_>,
        record: &mut Option<RequestTimer>,
        attempts: &mut Attempts,
    ) -> Result<AttemptResult, Error> {
        let mut last: Option<AttemptResult> = None;
        loop {
            let considered = self.consider(request);
            let selection = match self.select(request, attempts).await {
                Ok(selection) => selection,
                Err(error) => match last {
                    None => return Err(error),
                    // Whoever is left has failed already, or nobody is left: later, perhaps.
                    Some(_) if self.pause(request, attempts).await => continue,
                    Some(last) => return Ok(last),
                },
            };
            if let Some(branch) = selection.branch {
                self.branches.count(selection.policy, branch);
            }
            if last.is_some() {
                self.metrics.retry(request.row.label);
            }
            let record = record.get_or_insert_with(|| Self::first_record(request, &selection));
            record.follow(&selection);
            let explanation = self.explain(request, &selection, considered, attempts.count);
            let (outcome, answer, in_flight) =
                self.attempt(request, selection.in_flight, attempts).await;
            attempts.count += 1;
            let over = !self.should_retry(request, outcome, attempts);
            let done = AttemptResult {
                answer,
                worker: Arc::clone(&in_flight.worker),
                explanation,
                // A place is given back before another one is sought.
                in_flight: Some(in_flight).filter(|_| over),
            };
            if over {
                // A worker's refusal tells a client more than that another one was away; but not
                // that one began to answer.
                let away = done.answer.is_err() && outcome != Outcome::Truncated;
                let told = last.filter(|last| away && last.answer.is_ok());
                return Ok(told.unwrap_or(done));
            }
            attempts.tried.push(done.worker.slot);
            last = Some(done);
        }
    }

    /// A place at a worker that has not been tried; waits where all are full.
    async fn select(
        &self,
        request: ProxyRequest<'_>,
        attempts: &mut Attempts,
    ) -> Result<Selection, Error> {
        let constraints = Constraints {
            target: request.target,
            tried: &attempts.tried,
        };
        let particular = request.target.is_some() || !attempts.tried.is_empty();
        let full = match self.fleet.worker_queue() {
            Some(room) if room.has_waiters() && !particular => Some(room),
            room => match self.fleet.select(request.routing, constraints) {
                Ok(selection) => return Ok(selection),
                Err(SelectError::AtCapacity) => room,
                Err(SelectError::NoneReady) => {
                    self.branches
                        .count(self.fleet.policy(), self.nobody(request));
                    None
                }
                Err(SelectError::Exhausted | SelectError::Raced) => None,
            },
        };
        let nobody = || Error::NoAvailableWorkers {
            retry_after: self.fleet.retry_after_secs(),
        };
        let room = full.ok_or_else(nobody)?;
        let queue_deadline = Instant::now() + room.max_wait();
        let queue_deadline = *attempts.queue_deadline.get_or_insert(queue_deadline);
        let until = attempts
            .deadline
            .map_or(queue_deadline, |deadline| deadline.min(queue_deadline));
        let look = || self.fleet.select(request.routing, constraints).ok();
        room.wait(particular, until, look).await.map_err(|why| {
            self.metrics.rejected();
            match why {
                QueueError::Full => Error::QueueFull {
                    what: "max_requests_per_worker",
                    waiting: room.waiting(),
                    retry_after: 1,
                },
                QueueError::Timeout => Error::QueueTimeout {
                    what: "max_requests_per_worker",
                    seconds: room.max_wait().as_secs(),
                },
            }
        })
    }

    /// Which way it is to find nobody for a request.
    fn nobody(&self, request: ProxyRequest<'_>) -> Branch {
        if request.target.is_some() && self.fleet.ready_count() > 0 {
            Branch::TargetWorkerMiss
        } else {
            Branch::NoHealthyWorkers
        }
    }

    /// Counts the request; the record goes with the reply.
    fn first_record(request: ProxyRequest<'_>, selection: &Selection) -> RequestTimer {
        let model = Arc::clone(&selection.in_flight.worker.model_info.load().metrics);
        if let Some(endpoint) = model.endpoint(request.row.index) {
            endpoint.requests(request.streaming).inc();
        }
        RequestTimer::new(model, request.row.index, request.streaming, Instant::now())
    }

    /// One try at one worker. What it tells about the worker is noted, but for a success,
    /// which counts at its end.
    async fn attempt(
        &self,
        request: ProxyRequest<'_>,
        mut in_flight: InFlight,
        attempts: &mut Attempts,
    ) -> (Outcome, Answer, InFlight) {
        let begun = Instant::now();
        let deadline = *attempts.deadline.get_or_insert(begun + self.timeout);
        let worker = &in_flight.worker;
        let path = request_head::path(request.parts, request.row.worker_path);
        let headers = (&request.parts.headers, request.context);
        let head = self
            .rules
            .head(worker, &request.parts.method, &path, headers);
        let head = head.finish(request.body.len());
        let sending = worker.send(request.context.lane, &head, request.body);
        let (outcome, answer) = match self.watch(worker, sending, (begun, deadline)).await {
            Some(Ok(mut response)) => {
                let outcome = read(&mut response).await;
                self.metrics.upstream_response(response.status().as_u16());
                (outcome, Ok(response))
            }
            Some(Err(source)) => {
                let outcome = match &source {
                    UpstreamError::Connect(_) => Outcome::NotConnected,
                    UpstreamError::NoResponse => Outcome::NoResponse,
                    // Part of an answer had come: the worker has begun to work.
                    UpstreamError::Truncated(_) | UpstreamError::Malformed(_) => Outcome::Truncated,
                };
                let worker = worker.url.to_string();
                (outcome, Err(Error::Upstream { worker, source }))
            }
            None => {
                let (worker, seconds) = (worker.url.to_string(), begun.elapsed().as_secs());
                let error = Error::UpstreamTimeout { worker, seconds };
                (Outcome::TimedOut, Err(error))
            }
        };
        if let Err(error) = &answer {
            self.metrics.worker_error(error);
        }
        if !matches!(outcome, Outcome::Answered(200..=399)) {
            debug!(request_id = ?request.context.request_id, worker = %worker.url, ?outcome, "try failed");
            // What was left of a request's time may have been too little for any worker.
            let hurried = outcome == Outcome::TimedOut && begun.elapsed() < self.timeout / 2;
            let away = worker.is_away();
            let verdict = if hurried && !away {
                Outcome::Abandoned
            } else {
                outcome
            };
            attempts.finish(&mut in_flight, verdict);
        }
        (outcome, answer, in_flight)
    }

    /// Waits for a response head: to the deadline, or until the worker turns out to be away.
    /// A long silence has the worker probed.
    async fn watch<T>(
        &self,
        worker: &Worker,
        sending: impl Future<Output = T>,
        (begun, deadline): (Instant, Instant),
    ) -> Option<T> {
        let mut sending = pin!(sending);
        let mut look = begun + self.doubt_after;
        loop {
            if let Ok(sent) = timeout_at(look.min(deadline), sending.as_mut()).await {
                return Some(sent);
            }
            if look >= deadline || worker.is_away() {
                return None;
            }
            self.fleet.request_probe(worker);
            look += CHECK_INTERVAL;
        }
    }

    fn has_attempts_left(&self, attempts: &Attempts) -> bool {
        attempts.count < self.retry.attempts
    }

    /// Whether a request that ended so is tried again.
    fn should_retry(
        &self,
        request: ProxyRequest<'_>,
        outcome: Outcome,
        attempts: &mut Attempts,
    ) -> bool {
        let retry = outcome.consequence().retry;
        let late = attempts.deadline.is_some_and(|at| Instant::now() >= at);
        if retry == Retry::No || self.retry.attempts <= 1 {
            return false;
        }
        if late || !self.has_attempts_left(attempts) {
            self.metrics.retries_exhausted(request.row.label);
            return false;
        }
        let free = match outcome {
            // Nothing was sent.
            Outcome::NotConnected => true,
            _ => retry == Retry::Free && !attempts.free_retry_used,
        };
        if free {
            attempts.free_retry_used |= outcome != Outcome::NotConnected;
            return true;
        }
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let granted = budget.take(self.decisions.requests(), self.fleet.now());
        if !granted {
            self.metrics.retry_denied(request.row.label);
        }
        granted
    }

    /// Waits before workers that failed are tried again; false when that makes no sense.
    async fn pause(&self, request: ProxyRequest<'_>, attempts: &mut Attempts) -> bool {
        let mut rng = SeededRng::new(request.routing.seed.rotate_left(16));
        let pause = self.retry.backoff(attempts.count, &mut rng);
        let end = Instant::now() + pause;
        if !self.has_attempts_left(attempts) || attempts.deadline.is_some_and(|at| end >= at) {
            return false;
        }
        self.metrics.backoff(attempts.count, pause);
        attempts.tried.clear();
        // A pause is a try: a fleet that stays away is not waited for without end.
        attempts.count += 1;
        sleep(pause).await;
        true
    }
}

/// What a response says of the try. A refusal is read ahead, so that its connection is free
/// while somebody else is asked.
async fn read(response: &mut Response<WorkerBody>) -> Outcome {
    let outcome = Outcome::Answered(response.status().as_u16());
    if outcome.consequence().retry == Retry::No {
        return outcome;
    }
    let told_when = response.headers().contains_key(header::RETRY_AFTER);
    let body = response.body_mut();
    let why = body.read_ahead(MAX_REFUSAL_BYTES, REFUSAL_TIMEOUT).await;
    let unavailable = outcome == Outcome::Answered(StatusCode::SERVICE_UNAVAILABLE.as_u16());
    if unavailable && (told_when || says_full(why)) {
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
    fn a_full_queue_is_told_from_other_trouble() {
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
