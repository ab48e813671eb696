//! Questions to workers that are not inference: one worker's answer, or those of all.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout};

use super::body_fields::BodyFields;
use super::staggered::first_good;
use super::worker_query::{NOT_READY_TIMEOUT, WorkerQuery};
use crate::error::Error;
use crate::fleet::{Fleet, Worker, suspect_silent};
use crate::upstream::{ControlClient, ControlRequest, PrivateAnswer};

/// Workers asked at once: all of nearly every fleet, so that silent ones do not add up their waits.
pub(super) const FAN_OUT: usize = 256;

/// What a worker answered, or why it did not.
type Answer = Result<PrivateAnswer, Error>;

/// Asks workers, with the gateway's own credentials.
#[derive(Clone, Debug)]
pub(crate) struct FanOut {
    fleet: Arc<Fleet>,
    client: ControlClient,
    /// Questions asked in turn so far.
    turn: Arc<AtomicUsize>,
}

/// A worker and what it answered, if it did.
#[derive(Debug)]
pub(crate) struct WorkerAnswer {
    pub(crate) worker: Arc<Worker>,
    pub(crate) answer: Answer,
}

fn is_success(answer: &Answer) -> bool {
    answer.as_ref().is_ok_and(|it| it.status.is_success())
}

impl FanOut {
    pub(crate) fn new(fleet: Arc<Fleet>, client: ControlClient) -> Self {
        let turn = Arc::default();
        Self {
            fleet,
            client,
            turn,
        }
    }

    /// The first ready worker's answer, or that of the next one that has a good answer.
    pub(crate) async fn ask_first(&self, question: &WorkerQuery) -> Answer {
        self.ask_one_of(self.ready_workers(0), question).await
    }

    /// The same, beginning with another worker each time.
    pub(crate) async fn ask_in_turn(&self, question: &WorkerQuery) -> Answer {
        let turn = self.turn.fetch_add(1, Relaxed);
        self.ask_one_of(self.ready_workers(turn), question).await
    }

    /// Every worker's answer, in configuration order. A worker that is not ready is only asked
    /// to do things (POST), not to show them.
    pub(crate) async fn ask_all(&self, question: &WorkerQuery) -> Vec<WorkerAnswer> {
        self.ask_each(&self.fleet.servers(), question).await
    }

    /// The same of these workers.
    pub(crate) async fn ask_each(
        &self,
        workers: &[Arc<Worker>],
        question: &WorkerQuery,
    ) -> Vec<WorkerAnswer> {
        let mut asked: Vec<BoxFuture<'_, (usize, Answer)>> = Vec::new();
        for (at, worker) in workers.iter().enumerate() {
            asked.push(Box::pin(async move {
                let shows = question.method != Method::GET || worker.is_ready();
                let answer = if shows {
                    self.ask(worker, question, longest_wait(worker, question))
                        .await
                } else {
                    Err(Error::NoWorkerResponse)
                };
                (at, answer)
            }));
        }
        // Not `buffered`: there a silent worker holds up the ones behind it.
        let answers = stream::iter(asked).buffer_unordered(FAN_OUT);
        let mut answers: Vec<_> = answers.collect().await;
        answers.sort_unstable_by_key(|(at, _)| *at);
        let answers = workers.iter().zip(answers);
        let named = answers.map(|(worker, (_, answer))| WorkerAnswer {
            worker: Arc::clone(worker),
            answer,
        });
        named.collect()
    }

    /// Passes the body of an `/abort_request` on to every worker that may have the request: only
    /// the engine that runs it knows its `rid`, the others ignore it. The first success is the
    /// answer, once all have answered. A request that waits in the gateway is not found.
    pub(crate) async fn abort(&self, body: Bytes) -> Answer {
        BodyFields::read(&body)?;
        let question = &WorkerQuery::abort(body);
        let workers = self.fleet.servers();
        let mut asked: Vec<BoxFuture<'_, Answer>> = Vec::new();
        for worker in &workers {
            if worker.is_ready() || worker.load.own_requests() > 0 {
                let limit = longest_wait(worker, question);
                asked.push(Box::pin(self.ask(worker, question, limit)));
            }
        }
        let answers = stream::iter(asked).buffer_unordered(FAN_OUT);
        best(answers.collect().await)
    }

    /// The ready workers from the one whose turn it is; those that get no requests now come last.
    fn ready_workers(&self, turn: usize) -> Vec<Arc<Worker>> {
        let mut ready = self.fleet.servers();
        ready.retain(|worker| worker.is_ready());
        let first = turn.checked_rem(ready.len()).unwrap_or(0);
        ready.rotate_left(first);
        ready.sort_by_cached_key(|worker| !worker.availability().selectable);
        ready
    }

    /// The first success of these workers, or else what one of them answered.
    async fn ask_one_of(&self, workers: Vec<Arc<Worker>>, question: &WorkerQuery) -> Answer {
        let deadline = Instant::now() + question.timeout;
        let ask = |worker: Arc<Worker>| async move {
            let left = deadline.saturating_duration_since(Instant::now());
            self.ask(&worker, question, left).await
        };
        // One that probes have found away meanwhile takes no turn.
        let workers = workers.into_iter().filter(|worker| worker.is_ready());
        let answer = first_good(workers, deadline, ask, is_success).await;
        answer.unwrap_or_else(best)
    }

    /// A worker's answer to the first of the question's paths that is not 404 there. A worker
    /// that is silent for too long is suspect.
    async fn ask(&self, worker: &Worker, question: &WorkerQuery, limit: Duration) -> Answer {
        let mut answer = pin!(self.first_path(worker, question));
        let patience = question.suspect_after.min(limit);
        if let Ok(answer) = timeout(patience, answer.as_mut()).await {
            return answer;
        }
        // One that was given less time has not been silent for long.
        if patience == question.suspect_after {
            suspect_silent(&self.fleet, &worker.endpoint);
        }
        let late = timeout(limit.saturating_sub(patience), answer).await;
        late.unwrap_or_else(|_| {
            Err(Error::UpstreamTimeout {
                worker: worker.url().to_string(),
                // Rounded up.
                seconds: limit.as_secs() + u64::from(limit.subsec_nanos() > 0),
            })
        })
    }

    async fn first_path(&self, worker: &Worker, question: &WorkerQuery) -> Answer {
        let mut last = Err(Error::NoWorkerResponse);
        for path in question.paths {
            let request = ControlRequest {
                body: question.body.clone(),
                ..worker.endpoint.question(&question.method, path)
            };
            let answer = self.client.send(request).await;
            last = answer.map_err(|source| Error::Upstream {
                worker: worker.url().to_string(),
                source,
            });
            let absent = |answer: &PrivateAnswer| answer.status == StatusCode::NOT_FOUND;
            if !last.as_ref().is_ok_and(absent) {
                break;
            }
        }
        last
    }
}

/// How long a worker's answer is waited for.
fn longest_wait(worker: &Worker, question: &WorkerQuery) -> Duration {
    if worker.is_ready() {
        question.timeout
    } else {
        question.timeout.min(NOT_READY_TIMEOUT)
    }
}

/// The first success, or else the first answer, or else the first failure.
fn best(mut answers: Vec<Answer>) -> Answer {
    let first = |is: fn(&Answer) -> bool| answers.iter().position(is);
    let at = first(is_success).or_else(|| first(Answer::is_ok));
    if answers.is_empty() {
        return Err(Error::NoWorkers);
    }
    answers.swap_remove(at.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use routing::Probe;
    use std::net::TcpListener;
    use tokio::runtime::Handle;
    use tokio::time::sleep;

    use super::*;
    use crate::config::{ConnectionSection, FleetSection, Live, Options, WorkerUrl};
    use crate::fleet::{WorkerFactory, WorkerSpec, record_probe};
    use crate::telemetry::Metrics;
    use crate::upstream::{ConnectionLimits, Resolver};
    use crate::via::Via;

    const SECOND: Duration = Duration::from_secs(1);

    /// Ready workers, all of which share one port where nothing is ever answered.
    struct Frozen {
        fan_out: FanOut,
        workers: Arc<Vec<Arc<Worker>>>,
        _port: TcpListener,
    }

    fn frozen(count: usize) -> Frozen {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let options = &Options::default();
        let connections = ConnectionSection::from(options);
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let limits = ConnectionLimits::new(&connections, 1);
        let fleet = Fleet::new(FleetSection::from(options));
        let factory = WorkerFactory::new(&fleet, &Live::from(options), limits, &metrics);
        for at in 0..count {
            let url = WorkerUrl::parse(&format!("http://127.0.0.1:{port}/{at}")).unwrap();
            let worker = fleet.add(|slot| factory.build(WorkerSpec::new(url), slot, None));
            record_probe(&fleet, &worker.endpoint, Probe::Passed);
        }
        let resolver = Resolver::default();
        let client = ControlClient::new(
            &connections,
            resolver,
            Arc::default(),
            Handle::current(),
            &Via::new(),
        );
        Frozen {
            workers: fleet.workers(),
            fan_out: FanOut::new(fleet, client.unwrap()),
            _port: listener,
        }
    }

    fn fail(fleet: &Fleet, worker: &Worker) {
        for _ in 0..Options::default().health_failure_threshold {
            record_probe(fleet, &worker.endpoint, Probe::Failed);
        }
        assert!(!worker.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn fan_out_to_hundreds_of_silent_workers_ends_within_seconds() {
        let Frozen {
            fan_out, workers, ..
        } = &frozen(300);
        let get = WorkerQuery::get(&["/v1/loads", "/get_load"]);
        let flush = WorkerQuery::post(&["/flush_cache"], Bytes::new());
        for (question, longest) in [(get, 2 * 5 * SECOND), (flush, 2 * 10 * SECOND)] {
            let begun = Instant::now();
            let answers = fan_out.ask_all(&question).await;
            assert!(begun.elapsed() < longest + SECOND, "{:?}", begun.elapsed());
            assert_eq!(answers.len(), 300);
            for (asked, worker) in answers.iter().zip(workers.iter()) {
                assert!(Arc::ptr_eq(&asked.worker, worker));
                assert!(asked.answer.is_err());
            }
        }
        let begun = Instant::now();
        let body = Bytes::from_static(br#"{"rid":"r"}"#);
        assert!(fan_out.abort(body).await.is_err());
        assert!(begun.elapsed() < 11 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_is_not_ready_is_waited_for_no_longer_than_a_connection() {
        let Frozen {
            fan_out, workers, ..
        } = &frozen(1);
        fail(&fan_out.fleet, &workers[0]);
        let begun = Instant::now();
        let flush = WorkerQuery::post(&["/flush_cache"], Bytes::new());
        assert!(fan_out.ask_all(&flush).await[0].answer.is_err());
        assert!(begun.elapsed() < 3 * SECOND);
        let lease = workers[0].load.lease(0);
        let body = Bytes::from_static(br#"{"rid":"r"}"#);
        assert!(fan_out.abort(body).await.is_err());
        assert!(begun.elapsed() < 5 * SECOND);
        drop(lease);
    }

    #[tokio::test(start_paused = true)]
    async fn question_to_one_worker_ends_in_time_and_makes_the_silent_suspect() {
        let Frozen {
            fan_out, workers, ..
        } = &frozen(40);
        let begun = Instant::now();
        let info = WorkerQuery::information(&["/server_info", "/get_server_info"]);
        let answer = fan_out.ask_first(&info).await;
        assert!(matches!(
            answer,
            Err(Error::UpstreamTimeout { seconds: 5, .. })
        ));
        assert!(begun.elapsed() < 6 * SECOND, "{:?}", begun.elapsed());
        let suspect = |worker: &Arc<Worker>| worker.availability().fallback;
        // One is asked a second; the last ones had less than a second to answer.
        let suspects = workers.iter().take_while(|worker| suspect(worker)).count();
        assert!((4..=5).contains(&suspects), "{suspects}");
        assert!(!workers[suspects..].iter().any(suspect));
        let last = &workers[39];
        let hurried = fan_out.ask(last, &info, SECOND / 2).await;
        assert!(hurried.is_err() && !suspect(last));
        let next = fan_out.ready_workers(0);
        assert!(Arc::ptr_eq(&next[0], &workers[suspects]));
    }

    #[tokio::test(start_paused = true)]
    async fn workers_that_went_away_since_the_question_began_take_no_turn() {
        let Frozen {
            fan_out, workers, ..
        } = &frozen(6);
        let info = WorkerQuery::information(&["/server_info"]);
        let probes = async {
            sleep(SECOND / 2).await;
            for worker in &workers[1..5] {
                fail(&fan_out.fleet, worker);
            }
        };
        let (answer, ()) = tokio::join!(fan_out.ask_first(&info), probes);
        assert!(answer.is_err());
        // A turn each would have taken longer than the question may.
        assert!(workers[5].availability().fallback);
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_is_slow_to_generate_is_not_suspect_at_once() {
        let Frozen {
            fan_out, workers, ..
        } = &frozen(1);
        let question = WorkerQuery::generation(&["/health_generate"]);
        let silent = timeout(4 * SECOND, fan_out.ask_in_turn(&question));
        assert!(silent.await.is_err());
        assert!(workers[0].availability().selectable);
        let silent = timeout(6 * SECOND, fan_out.ask_in_turn(&question));
        assert!(silent.await.is_err());
        assert!(workers[0].availability().fallback);
    }

    #[tokio::test]
    async fn questions_in_turn_begin_with_another_worker_each() {
        let Frozen {
            fan_out, workers, ..
        } = &frozen(3);
        let first = |turn| fan_out.ready_workers(turn)[0].slot;
        assert_eq!([0, 1, 2, 3].map(first), [0, 1, 2, 0]);
        suspect_silent(&fan_out.fleet, &workers[1].endpoint);
        let order = |turn| {
            fan_out
                .ready_workers(turn)
                .iter()
                .map(|it| it.slot)
                .collect::<Vec<_>>()
        };
        assert_eq!([order(0), order(1)], [[0, 2, 1], [2, 0, 1]]);
    }
}
