//! Listens to workers that publish their loads, as often as these change.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use routing::LoadFigures;
use tokio::net::TcpStream;
use tokio::time::{interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::health_checks::HealthChecks;
use super::load_intake::take_report;
use super::load_report::{LoadSource, PUSH_LASTS};
use super::load_stat;
use super::model_info::LoadPublisher;
use crate::config::{LoadPush, LoadSection};
use crate::telemetry::Metrics;
use crate::upstream::{Subscription, SubscriptionError};

/// Pause between looks at which workers publish, and whether they still do.
const LOOK: Duration = Duration::from_secs(1);
/// Longest time for a connection, and for its greeting.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Silence after which a connection is made anew: workers publish each second.
const SILENCE: Duration = Duration::from_secs(10);
/// Pauses before another connection.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Listens to all workers that publish their loads.
#[derive(Debug)]
pub(crate) struct LoadPushes {
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
}

/// Listens to one rank of an endpoint.
struct Listener {
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    endpoint: Arc<Endpoint>,
    publisher: LoadPublisher,
    rank: u16,
}

/// A publisher that is listened to.
struct Listening {
    publisher: LoadPublisher,
    _task: AbortOnDropHandle<()>,
}

impl LoadPushes {
    /// `None` where the options say that nothing is listened to.
    pub(crate) fn new(health_checks: &HealthChecks, options: LoadSection) -> Option<Self> {
        (options.push == LoadPush::Auto).then(|| Self {
            fleet: Arc::clone(&health_checks.fleet),
            metrics: Arc::clone(&health_checks.metrics),
        })
    }

    /// Runs until dropped.
    pub(crate) async fn run(self) {
        let mut ticks = interval(LOOK);
        let mut listening = BTreeMap::<(String, u16), Listening>::new();
        loop {
            ticks.tick().await;
            self.expire();
            let mut wanted = self.publishers();
            listening.retain(|key, known| {
                let still = wanted
                    .get(key)
                    .is_some_and(|(_, it)| *it == known.publisher);
                if still {
                    wanted.remove(key);
                }
                still
            });
            for ((url, rank), (endpoint, publisher)) in wanted {
                if rank == 0 {
                    info!(worker = %endpoint.url, port = publisher.port, "worker publishes its load");
                }
                let listener = Listener {
                    fleet: Arc::clone(&self.fleet),
                    metrics: Arc::clone(&self.metrics),
                    endpoint,
                    publisher: publisher.clone(),
                    rank,
                };
                let task = AbortOnDropHandle::new(tokio::spawn(listener.run()));
                let known = Listening {
                    publisher,
                    _task: task,
                };
                listening.insert((url, rank), known);
            }
        }
    }

    /// The ranks of ready endpoints that publish.
    fn publishers(&self) -> BTreeMap<(String, u16), (Arc<Endpoint>, LoadPublisher)> {
        let mut publishers = BTreeMap::new();
        for worker in self.fleet.workers().iter() {
            if !worker.is_first_rank() || !worker.is_ready() {
                continue;
            }
            let info = worker.endpoint.model_info.load();
            let Some(publisher) = info.load_publisher() else {
                continue;
            };
            for rank in 0..u16::try_from(info.ranks()).unwrap_or(u16::MAX) {
                let known = (Arc::clone(&worker.endpoint), publisher.clone());
                publishers.insert((worker.url().to_string(), rank), known);
            }
        }
        publishers
    }

    fn expire(&self) {
        for worker in self.fleet.workers().iter() {
            if worker.reported.expire(LoadSource::Push, PUSH_LASTS) {
                worker.load.forget_others();
            }
        }
    }
}

impl Listener {
    /// Connects again and again, until dropped.
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(heard) = self.listen().await else {
                return;
            };
            pause = if heard {
                FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_PAUSE)
            };
            sleep(pause).await;
        }
    }

    /// Listens until the connection ends; whether anything was heard. `None`: there is no such port.
    async fn listen(&self) -> Option<bool> {
        let port = self.publisher.port.checked_add(self.rank)?;
        let mut heard = false;
        let error = match self.subscribe(port).await {
            Err(error) => error,
            Ok(mut subscription) => loop {
                match within(SILENCE, subscription.next()).await {
                    Ok(parts) => heard |= self.take(&parts),
                    Err(error) => break error,
                }
            },
        };
        debug!(worker = %self.endpoint.url, port, %error, "worker's load is not heard");
        Some(heard)
    }

    async fn subscribe(&self, port: u16) -> Result<Subscription<TcpStream>, SubscriptionError> {
        let host = self.endpoint.url.host();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let opening = async {
            let stream = TcpStream::connect((host, port)).await?;
            Subscription::open(stream, &self.publisher.topic).await
        };
        within(LONGEST_WAIT, opening).await
    }

    /// Takes a message; whether it is one.
    fn take(&self, parts: &[Vec<u8>]) -> bool {
        let decoded = parts.last().and_then(|payload| load_stat::decode(payload));
        let result = if decoded.is_some() {
            "success"
        } else {
            "failure"
        };
        self.metrics.load_report("push", result);
        let Some(report) = decoded else {
            return false;
        };
        for worker in &self.fleet.workers_of(&self.endpoint) {
            let report = match worker.rank() {
                None => worker.reported.with_rank(self.rank, report),
                Some(rank) if rank == usize::from(self.rank) => report,
                Some(_) => continue,
            };
            take_report(worker, report, LoadSource::Push, LoadFigures::default());
        }
        true
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, SubscriptionError>>,
) -> Result<T, SubscriptionError> {
    let late = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
    timeout(limit, call).await.unwrap_or_else(|_| late())
}
