//! Trying one worker after another, until one answers or trying on makes no sense.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header, request};
use routing::{Again, Outcome, Request as RoutingRequest};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::explain::Explanation;
use super::relay::Record;
use super::{Passage, Proxy, outbound};
use crate::endpoint::Inference;
use crate::error::Error;
use crate::fleet::{NoPlace, NoRoom, Placed, Ticket, Wish, Worker, WorkerBody};
use crate::wire::WireError;

/// Most of a refusal that is read before it is known whether somebody else is asked, bytes.
const MOST_REFUSAL: usize = 64 * 1024;
/// Longest wait for that.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);

/// A request, as it goes to whichever worker.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) row: &'static Inference,
    pub(super) passage: Passage<'a>,
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
pub(super) struct Try {
    pub(super) answer: Answer,
    pub(super) worker: Arc<Worker>,
    /// `None` once another try follows.
    pub(super) ticket: Option<Ticket>,
    pub(super) explanation: Explanation,
}

/// The tries of one request so far.
#[derive(Default)]
struct Course {
    /// Slots of the workers where it failed.
    tried: Vec<usize>,
    tries: u32,
    /// The workers that hung up on it without an answer.
    lost: Vec<Arc<Worker>>,
    /// The one retry that a lost connection gives for free has been had.
    free_retry_used: bool,
}

impl Course {
    /// Holds lost connections against the worker, unless several hung up: then it was the
    /// request, which must not take a whole fleet out.
    fn blame(&self) {
        let same = |pair: &[Arc<Worker>]| matches!(pair, [one, other] if one.slot == other.slot);
        if self.lost.windows(2).all(same) {
            for worker in &self.lost {
                worker.blame();
            }
        }
    }
}

impl Proxy {
    /// Tries workers for a request; what came of the last one is the answer.
    ///
    /// # Errors
    /// When no worker could be tried at all.
    pub(super) async fn try_workers(
        &self,
        job: Job<'_>,
        record: &mut Option<Record>,
    ) -> Result<Try, Error> {
        let mut course = Course::default();
        let tried = self.try_in_turn(job, record, &mut course).await;
        course.blame();
        tried
    }

    async fn try_in_turn(
        &self,
        job: Job<'_>,
        record: &mut Option<Record>,
        course: &mut Course,
    ) -> Result<Try, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut last: Option<Try> = None;
        loop {
            let considered = self.consider(job);
            let placed = match self.place(job, &course.tried).await {
                Ok(placed) => placed,
                Err(error) => match last {
                    None => return Err(error),
                    // Whoever is left has failed already, or nobody is left: later, perhaps.
                    Some(_) if self.pause(job, course, deadline).await => continue,
                    Some(last) => return Ok(last),
                },
            };
            if last.is_some() {
                self.metrics.retry(job.row.label);
            }
            let record = record.get_or_insert_with(|| Self::first_record(job, &placed));
            record.follow(&placed.ticket.worker);
            let explanation = self.explain(job, &placed, considered, course.tries);
            let (outcome, answer, ticket) = self.attempt(job, placed.ticket, deadline).await;
            course.tries += 1;
            if outcome == Outcome::Lost {
                course.lost.push(Arc::clone(&ticket.worker));
            }
            let over = Instant::now() >= deadline || !self.again(outcome, course);
            if over && outcome.meaning().again != Again::Never {
                self.metrics.retries_exhausted(job.row.label);
            }
            let done = Try {
                answer,
                worker: Arc::clone(&ticket.worker),
                explanation,
                // A place is given back before another one is sought.
                ticket: Some(ticket).filter(|_| over),
            };
            if over {
                return Ok(done);
            }
            course.tried.push(done.worker.slot);
            last = Some(done);
        }
    }

    /// A place at a worker that has not been tried; waits where all are full.
    async fn place(&self, job: Job<'_>, tried: &[usize]) -> Result<Placed, Error> {
        let wish = Wish {
            target: job.target,
            tried,
        };
        let particular = job.target.is_some() || !tried.is_empty();
        let full = match self.fleet.room() {
            Some(room) if room.has_line() && !particular => Some(room),
            room => match self.fleet.place(job.routing, wish) {
                Ok(placed) => return Ok(placed),
                Err(NoPlace::Full) => room,
                Err(NoPlace::Nobody | NoPlace::Tried | NoPlace::Lost) => None,
            },
        };
        let nobody = || Error::NoAvailableWorkers {
            retry_after: self.fleet.retry_after_secs(),
        };
        let room = full.ok_or_else(nobody)?;
        let placed = room.wait(particular, || self.fleet.place(job.routing, wish).ok());
        placed.await.map_err(|why| match why {
            NoRoom::QueueFull => Error::QueueFull {
                what: "max_requests_per_worker",
                waiting: room.waiting(),
                retry_after: 1,
            },
            NoRoom::TookTooLong => Error::QueueTimeout {
                what: "max_requests_per_worker",
                seconds: room.longest_wait().as_secs(),
            },
        })
    }

    /// Counts the request; the record goes with the reply.
    fn first_record(job: Job<'_>, placed: &Placed) -> Record {
        let model = Arc::clone(&placed.ticket.worker.identity.load().metrics);
        if let Some(endpoint) = model.endpoints.get(job.row.index) {
            endpoint.requests(job.streaming).inc();
        }
        Record::new(model, job.row.index, job.streaming, Instant::now())
    }

    /// One try at one worker. What it tells about the worker is noted, but for a success,
    /// which counts at its end.
    async fn attempt(
        &self,
        job: Job<'_>,
        mut ticket: Ticket,
        deadline: Instant,
    ) -> (Outcome, Answer, Ticket) {
        let worker = &ticket.worker;
        let path = outbound::path(job.parts, job.row.worker_path);
        let headers = (&job.parts.headers, job.passage);
        let head = self.rules.head(worker, &job.parts.method, &path, headers);
        let head = head.finish(job.body.len());
        let sent = timeout_at(deadline, worker.send(job.passage.lane, &head, job.body)).await;
        let (outcome, answer) = match sent {
            Ok(Ok(mut response)) => {
                let outcome = read(&mut response).await;
                self.metrics.upstream_response(response.status().as_u16());
                (outcome, Ok(response))
            }
            Ok(Err(source)) => {
                let outcome = match &source {
                    WireError::Connect(_) => Outcome::Refused,
                    WireError::Unanswered => Outcome::Lost,
                    // Part of an answer had come: the worker has begun to work.
                    WireError::Cut(_) | WireError::Nonsense(_) => Outcome::Cut,
                };
                let worker = worker.url.to_string();
                (outcome, Err(Error::Upstream { worker, source }))
            }
            Err(_) => {
                let (worker, seconds) = (worker.url.to_string(), self.timeout.as_secs());
                (
                    Outcome::TimedOut,
                    Err(Error::UpstreamTimeout { worker, seconds }),
                )
            }
        };
        if !matches!(outcome, Outcome::Answered(200..=399)) {
            debug!(request_id = ?job.passage.request_id, worker = %worker.url, ?outcome, "try failed");
            ticket.settle(outcome);
        }
        (outcome, answer, ticket)
    }

    fn may_try_on(&self, course: &Course) -> bool {
        course.tries < self.retry.tries
    }

    /// Whether a request that ended so is tried again.
    fn again(&self, outcome: Outcome, course: &mut Course) -> bool {
        if !self.may_try_on(course) {
            return false;
        }
        match outcome.meaning().again {
            Again::Never => false,
            Again::Elsewhere if outcome == Outcome::Refused => true,
            Again::Elsewhere if !course.free_retry_used => {
                course.free_retry_used = true;
                true
            }
            Again::Elsewhere | Again::WithinBudget => {
                let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
                budget.take(self.decisions.requests(), self.fleet.now())
            }
        }
    }

    /// Waits before workers that failed are tried again; false when that makes no sense.
    async fn pause(&self, job: Job<'_>, course: &mut Course, deadline: Instant) -> bool {
        let chance = job.routing.chance.rotate_left(16);
        let mut draw = RoutingRequest {
            chance,
            ..RoutingRequest::default()
        }
        .draw();
        let pause = self.retry.pause(course.tries, &mut draw);
        if !self.may_try_on(course) || Instant::now() + pause >= deadline {
            return false;
        }
        self.metrics.backoff(course.tries, pause);
        course.tried.clear();
        // A pause is a try: a fleet that stays away is not waited for without end.
        course.tries += 1;
        sleep(pause).await;
        true
    }
}

/// What a response says of the try. A refusal is read ahead, so that its connection is free
/// while somebody else is asked.
async fn read(response: &mut Response<WorkerBody>) -> Outcome {
    let outcome = Outcome::Answered(response.status().as_u16());
    if outcome.meaning().again == Again::Never {
        return outcome;
    }
    let told_when = response.headers().contains_key(header::RETRY_AFTER);
    let body = response.body_mut();
    let why = body.read_ahead(MOST_REFUSAL, REFUSAL_PATIENCE).await;
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
