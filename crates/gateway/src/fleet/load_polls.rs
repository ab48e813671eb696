//! Asks workers for their load: traffic that other gateways have sent there counts, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use http::Method;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::debug;

use super::endpoint::Endpoint;
use super::fleet::Fleet;
use super::health_checks::HealthChecks;
use super::load_intake::take_report;
use super::load_report::{LoadReport, LoadSource};
use super::worker::Worker;
use crate::config::LoadSection;
use crate::telemetry::Metrics;
use crate::upstream::ControlClient;

/// What is asked: the section that every release has.
const PATH: &str = "/v1/loads?include=core";
/// Workers that are asked at the same time.
const AT_A_TIME: usize = 64;
/// Longest time for an answer.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Intervals after which the last report of a silent worker does not count any more.
const INTERVALS: u32 = 3;

/// Asks all workers again and again.
#[derive(Debug)]
pub(crate) struct LoadPolls {
    fleet: Arc<Fleet>,
    client: ControlClient,
    metrics: Arc<Metrics>,
    interval: Duration,
}

impl LoadPolls {
    /// As often as the options say; `None` where they say never.
    pub(crate) fn new(health_checks: &HealthChecks, options: LoadSection) -> Option<Self> {
        Some(Self {
            fleet: Arc::clone(&health_checks.fleet),
            client: health_checks.client.clone(),
            metrics: Arc::clone(&health_checks.metrics),
            interval: options.poll_interval?,
        })
    }

    /// Runs until dropped.
    pub(crate) async fn run(self) {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let asking = stream::iter(self.ready_endpoints());
            let asking = asking.for_each_concurrent(AT_A_TIME, |endpoint| self.ask(endpoint));
            asking.await;
            for worker in self.fleet.workers().iter() {
                self.expire(worker);
            }
        }
    }

    /// The endpoints of workers that take requests.
    fn ready_endpoints(&self) -> Vec<Arc<Endpoint>> {
        let workers = self.fleet.workers();
        let ready = workers
            .iter()
            .filter(|worker| worker.is_first_rank() && worker.is_ready());
        ready.map(|worker| Arc::clone(&worker.endpoint)).collect()
    }

    async fn ask(&self, endpoint: Arc<Endpoint>) {
        let workers = self.fleet.workers_of(&endpoint);
        let before: Vec<_> = workers.iter().map(|worker| worker.load.known()).collect();
        let reports = self.reports(&endpoint).await;
        let result = if reports.is_some() {
            "success"
        } else {
            "failure"
        };
        self.metrics.load_report("poll", result);
        let mut reports = reports.unwrap_or_default();
        let Some(one) = reports.values().copied().reduce(LoadReport::plus) else {
            // Now, for the others of this round may take long.
            for worker in &workers {
                self.expire(worker);
            }
            return;
        };
        for (worker, before) in workers.iter().zip(before) {
            let report = match worker.rank() {
                None => Some(one),
                Some(rank) => reports.remove(&(rank as u64)),
            };
            if let Some(report) = report {
                take_report(worker, report, LoadSource::Poll, before);
            }
        }
    }

    /// Forgets the report of a worker that has been silent for long.
    fn expire(&self, worker: &Worker) {
        if worker
            .reported
            .expire(LoadSource::Poll, self.interval * INTERVALS)
        {
            worker.load.forget_others();
        }
    }

    /// What an endpoint says of its ranks; `None` when it does not answer as it should.
    async fn reports(&self, endpoint: &Endpoint) -> Option<BTreeMap<u64, LoadReport>> {
        let asked = self.client.send(endpoint.question(&Method::GET, PATH));
        let answer = match timeout(self.interval.min(LONGEST_WAIT), asked).await {
            Ok(Ok(answer)) if answer.status.is_success() => answer,
            Ok(Ok(answer)) => {
                debug!(worker = %endpoint.url, status = answer.status.as_u16(), "worker reports no load");
                return None;
            }
            Ok(Err(error)) => {
                debug!(worker = %endpoint.url, %error, "worker reports no load");
                return None;
            }
            Err(_) => {
                debug!(worker = %endpoint.url, "worker reports no load in time");
                return None;
            }
        };
        let document: Value = serde_json::from_slice(&answer.body).ok()?;
        let entries = document.get("loads")?.as_array()?;
        let reports: Option<BTreeMap<_, _>> = entries.iter().map(LoadReport::of_entry).collect();
        reports.filter(|reports| !reports.is_empty())
    }
}
