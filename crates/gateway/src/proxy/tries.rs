//! Trying one worker after another, until one answers or trying on makes no sense.

use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header, request};
use routing::{Again, Branch, Draw, Outcome, Request as RoutingRequest};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::course::Course;
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
/// How often a silent worker is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
        let mut last: Option<Try> = None;
        loop {
            let considered = self.consider(job);
            let placed = match self.place(job, course).await {
                Ok(placed) => placed,
                Err(error) => match last {
                    None => return Err(error),
                    // Whoever is left has failed already, or nobody is left: later, perhaps.
                    Some(_) if self.pause(job, course).await => continue,
                    Some(last) => return Ok(last),
                },
            };
            if let Some(branch) = placed.branch {
                self.branches.count(placed.policy, branch);
            }
            if last.is_some() {
                self.metrics.retry(job.row.label);
            }
            let record = record.get_or_insert_with(|| Self::first_record(job, &placed));
            record.follow(&placed);
            let explanation = self.explain(job, &placed, considered, course.tries);
            let (outcome, answer, ticket) = self.attempt(job, placed.ticket, course).await;
            course.tries += 1;
            let over = !self.again(job, outcome, course);
            let done = Try {
                answer,
                worker: Arc::clone(&ticket.worker),
                explanation,
                // A place is given back before another one is sought.
                ticket: Some(ticket).filter(|_| over),
            };
            if over {
                // A worker's refusal tells a client more than that another one was away; but not
                // that one began to answer.
                let away = done.answer.is_err() && outcome != Outcome::Cut;
                let told = last.filter(|last| away && last.answer.is_ok());
                return Ok(told.unwrap_or(done));
            }
            course.tried.push(done.worker.slot);
            last = Some(done);
        }
    }

    /// A place at a worker that has not been tried; waits where all are full.
    async fn place(&self, job: Job<'_>, course: &mut Course) -> Result<Placed, Error> {
        let wish = Wish {
            target: job.target,
            tried: &course.tried,
        };
        let particular = job.target.is_some() || !course.tried.is_empty();
        let full = match self.fleet.room() {
            Some(room) if room.has_line() && !particular => Some(room),
            room => match self.fleet.place(job.routing, wish) {
                Ok(placed) => return Ok(placed),
                Err(NoPlace::Full) => room,
                Err(NoPlace::Nobody) => {
                    self.branches.count(self.fleet.policy(), self.nobody(job));
                    None
                }
                Err(NoPlace::Tried | NoPlace::Lost) => None,
            },
        };
        let nobody = || Error::NoAvailableWorkers {
            retry_after: self.fleet.retry_after_secs(),
        };
        let room = full.ok_or_else(nobody)?;
        let queue_deadline = Instant::now() + room.longest_wait();
        let queue_deadline = *course.queue_deadline.get_or_insert(queue_deadline);
        let until = course
            .deadline
            .map_or(queue_deadline, |deadline| deadline.min(queue_deadline));
        let look = || self.fleet.place(job.routing, wish).ok();
        room.wait(particular, until, look).await.map_err(|why| {
            self.metrics.rejected();
            match why {
                NoRoom::QueueFull => Error::QueueFull {
                    what: "max_requests_per_worker",
                    waiting: room.waiting(),
                    retry_after: 1,
                },
                NoRoom::TookTooLong => Error::QueueTimeout {
                    what: "max_requests_per_worker",
                    seconds: room.longest_wait().as_secs(),
                },
            }
        })
    }

    /// Which way it is to find nobody for a request.
    fn nobody(&self, job: Job<'_>) -> Branch {
        if job.target.is_some() && self.fleet.ready_count() > 0 {
            Branch::TargetWorkerMiss
        } else {
            Branch::NoHealthyWorkers
        }
    }

    /// Counts the request; the record goes with the reply.
    fn first_record(job: Job<'_>, placed: &Placed) -> Record {
        let model = Arc::clone(&placed.ticket.worker.identity.load().metrics);
        if let Some(endpoint) = model.endpoint(job.row.index) {
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
        course: &mut Course,
    ) -> (Outcome, Answer, Ticket) {
        let begun = Instant::now();
        let deadline = *course.deadline.get_or_insert(begun + self.timeout);
        let worker = &ticket.worker;
        let path = outbound::path(job.parts, job.row.worker_path);
        let headers = (&job.parts.headers, job.passage);
        let head = self.rules.head(worker, &job.parts.method, &path, headers);
        let head = head.finish(job.body.len());
        let sending = worker.send(job.passage.lane, &head, job.body);
        let (outcome, answer) = match self.watch(worker, sending, (begun, deadline)).await {
            Some(Ok(mut response)) => {
                let outcome = read(&mut response).await;
                self.metrics.upstream_response(response.status().as_u16());
                (outcome, Ok(response))
            }
            Some(Err(source)) => {
                let outcome = match &source {
                    WireError::Connect(_) => Outcome::Refused,
                    WireError::Unanswered => Outcome::Lost,
                    // Part of an answer had come: the worker has begun to work.
                    WireError::Cut(_) | WireError::Nonsense(_) => Outcome::Cut,
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
            debug!(request_id = ?job.passage.request_id, worker = %worker.url, ?outcome, "try failed");
            // What was left of a request's time may have been too little for any worker.
            let hurried = outcome == Outcome::TimedOut && begun.elapsed() < self.timeout / 2;
            let away = worker.is_away();
            let verdict = if hurried && !away {
                Outcome::Abandoned
            } else {
                outcome
            };
            course.settle(&mut ticket, verdict);
        }
        (outcome, answer, ticket)
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
            self.fleet.doubt(worker);
            look += LOOK_AGAIN;
        }
    }

    fn may_try_on(&self, course: &Course) -> bool {
        course.tries < self.retry.tries
    }

    /// Whether a request that ended so is tried again.
    fn again(&self, job: Job<'_>, outcome: Outcome, course: &mut Course) -> bool {
        let again = outcome.meaning().again;
        let late = course.deadline.is_some_and(|at| Instant::now() >= at);
        if again == Again::Never || self.retry.tries <= 1 {
            return false;
        }
        if late || !self.may_try_on(course) {
            self.metrics.retries_exhausted(job.row.label);
            return false;
        }
        let free = match outcome {
            // Nothing was sent.
            Outcome::Refused => true,
            _ => again == Again::Elsewhere && !course.free_retry_used,
        };
        if free {
            course.free_retry_used |= outcome != Outcome::Refused;
            return true;
        }
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let granted = budget.take(self.decisions.requests(), self.fleet.now());
        if !granted {
            self.metrics.retry_denied(job.row.label);
        }
        granted
    }

    /// Waits before workers that failed are tried again; false when that makes no sense.
    async fn pause(&self, job: Job<'_>, course: &mut Course) -> bool {
        let mut draw = Draw::new(job.routing.chance.rotate_left(16));
        let pause = self.retry.pause(course.tries, &mut draw);
        let end = Instant::now() + pause;
        if !self.may_try_on(course) || course.deadline.is_some_and(|at| end >= at) {
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
