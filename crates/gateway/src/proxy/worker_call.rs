//! One call to a worker: what is waited for, and what its end says.

use std::pin::Pin;
use std::time::Duration;

use http::{Response, StatusCode};
use routing::Outcome;
use tokio::time::{Instant, timeout_at};

use super::attempts::Attempts;
use super::events::{Start, start};
use super::refusal::{read_refusal, refusal_in};
use super::request::ProxyRequest;
use super::sse::is_event_stream;
use crate::error::Error;
use crate::fleet::{Endpoint, Fleet, Worker, request_probe};
use crate::lane::Lane;
use crate::telemetry::Metrics;
use crate::upstream::{Call, ResponseBody, UpstreamError};

/// Most of a stream's first event that is waited for, bytes.
const MAX_EVENT_BYTES: usize = 16 * 1024;
/// How long comments before the first event are held back: a client that waits for signs of life
/// gets them late, but gets them.
const MAX_COMMENT_WAIT: Duration = Duration::from_secs(1);
/// How often a silent worker is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A response, or why there is none.
pub(super) type Answer = Result<Box<Response<ResponseBody>>, Error>;

/// When a worker that is silent is doubted, and when it is given up.
#[derive(Clone, Copy)]
pub(super) struct Watch {
    pub(super) begun: Instant,
    deadline: Instant,
    probe_after: Duration,
}

/// What a call that failed says of the attempt.
pub(super) fn no_answer(
    metrics: &Metrics,
    worker: &Worker,
    source: UpstreamError,
) -> (Outcome, Answer) {
    if let Some(lacking) = source.local_fault() {
        metrics.local_fault(lacking, &source);
    }
    let (worker, outcome) = (worker.url().to_string(), source.outcome());
    (outcome, Err(Error::Upstream { worker, source }))
}

/// Sends a call and waits for what the client gets first: the head of the response, and of a
/// stream of events the first of them, which may be a refusal.
pub(super) async fn send_call(
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
pub(super) async fn read_answer(
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
    /// For an attempt that begins now; all attempts of a request have one deadline.
    pub(super) fn begin(request: &ProxyRequest<'_>, attempts: &mut Attempts) -> Self {
        let begun = Instant::now();
        let deadline = begun + request.live.request_timeout;
        Self {
            begun,
            deadline: *attempts.deadline.get_or_insert(deadline),
            probe_after: request.live.probe_after,
        }
    }

    /// What a silence to the deadline says of the attempt.
    pub(super) fn timed_out(self, worker: &Worker) -> (Outcome, Answer) {
        let (worker, seconds) = (worker.url().to_string(), self.begun.elapsed().as_secs());
        let error = Error::UpstreamTimeout { worker, seconds };
        (Outcome::TimedOut, Err(error))
    }

    /// Waits for a response head: to the deadline, or until the worker turns out to be
    /// unreachable. A long silence has the worker probed.
    pub(super) async fn wait<T>(
        self,
        fleet: &Fleet,
        worker: &Worker,
        mut sending: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        let mut check = self.begun + self.probe_after;
        loop {
            if let Ok(sent) = timeout_at(check.min(self.deadline), sending.as_mut()).await {
                return Some(sent);
            }
            if check >= self.deadline || worker.is_lost() {
                return None;
            }
            request_probe(fleet, &worker.endpoint);
            check += CHECK_INTERVAL;
        }
    }
}
