//! A follower between a scripted API server and a registry.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use kube::Config;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::super::follow::Follower;
use super::super::source::client;
use super::super::watch::Timing;
use super::api_server::ApiServer;
use super::rules;
use crate::config::{ConnectionSection, FleetSection, Live, Options};
use crate::fleet::{Endpoint, Fleet, Registry, SourceState, Worker, WorkerFactory};
use crate::telemetry::Metrics;
use crate::upstream::ConnectionLimits;

/// How soon the registry must be right.
const SOON: Duration = Duration::from_secs(2);

pub(super) const TIMING: Timing = Timing {
    watch_secs: 1,
    list_again: Duration::from_mins(1),
    burst: Duration::from_millis(5),
    pause: Duration::ZERO,
};

pub(super) struct Stage {
    pub(super) api: ApiServer,
    pub(super) registry: Arc<Registry>,
    pub(super) metrics: Arc<Metrics>,
    serving: Option<JoinHandle<()>>,
    _joined: mpsc::UnboundedReceiver<Arc<Endpoint>>,
}

/// Waits until what is shown is that, within two seconds.
async fn until_equal<T: Debug + PartialEq>(shown: impl Fn() -> T, expected: T) {
    let deadline = Instant::now() + SOON;
    while shown() != expected {
        assert!(
            Instant::now() < deadline,
            "{:#?}\nexpected {expected:#?}",
            shown()
        );
        sleep(Duration::from_millis(2)).await;
    }
}

impl Stage {
    /// One that finds regular workers by the label `app=engine`.
    pub(super) async fn new(timing: Timing) -> Self {
        Self::with(json!({"selector": {"app": "engine"}}), timing).await
    }

    pub(super) async fn with(options: Value, timing: Timing) -> Self {
        let stage = Self::without_follower().await;
        stage.follow(options, timing);
        stage
    }

    pub(super) async fn without_follower() -> Self {
        let (api, serving) = ApiServer::start().await;
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let options = &Options::default();
        let limits = ConnectionLimits::new(&ConnectionSection::from(options), 1);
        let fleet = Fleet::new(FleetSection::from(options));
        let factory = WorkerFactory::new(&fleet, &Live::from(options), limits, &metrics);
        let (joining, joined) = mpsc::unbounded_channel();
        let registry = Registry::new(fleet, factory, joining);
        Self {
            api,
            registry: Arc::new(registry),
            metrics,
            serving: Some(serving),
            _joined: joined,
        }
    }

    pub(super) fn follow(&self, options: Value, timing: Timing) {
        let follower = Follower::new(rules(options), &self.registry, timing);
        let uri: http::Uri = format!("http://{}", self.api.addr).parse().unwrap();
        let connect = move || {
            let config = Config::new(uri.clone());
            async move { client(config, timing) }
        };
        tokio::spawn(follower.run(connect));
    }

    /// The workers: by URL the uid of the pod, the role, and whether they may get requests.
    pub(super) fn workers(&self) -> BTreeMap<String, String> {
        let workers = self.registry.fleet().workers();
        let staying = workers.iter().filter(|worker| !worker.is_draining());
        let shown = staying.map(|worker| {
            let config = worker.endpoint.config.load();
            let uid = config
                .spec
                .labels
                .get("smg.ai/pod-uid")
                .cloned()
                .unwrap_or_default();
            let held = if worker.availability().unready {
                " held"
            } else {
                ""
            };
            let role = worker.role().as_str();
            (worker.url().to_string(), format!("{uid} {role}{held}"))
        });
        shown.collect()
    }

    /// Waits until the workers are those, within two seconds.
    pub(super) async fn until(&self, expected: &[(&str, &str)]) {
        let expected = expected
            .iter()
            .map(|(url, what)| ((*url).to_owned(), (*what).to_owned()));
        self.until_all(expected.collect()).await;
    }

    pub(super) async fn until_all(&self, expected: BTreeMap<String, String>) {
        until_equal(|| self.workers(), expected).await;
    }

    /// Waits until the workers are those in those zones.
    pub(super) async fn until_zones(&self, expected: &[(&str, Option<&str>)]) {
        let zones = || -> BTreeMap<_, _> {
            let workers = self.registry.fleet().workers();
            let zone = |worker: &Arc<Worker>| worker.endpoint.config.load().spec.zone.clone();
            let zones = workers.iter().map(|it| (it.url().to_string(), zone(it)));
            zones.collect()
        };
        let expected = expected
            .iter()
            .map(|(url, zone)| ((*url).to_owned(), zone.map(str::to_owned)));
        until_equal(zones, expected.collect()).await;
    }

    /// Waits until the source is doing so.
    pub(super) async fn until_state(&self, state: SourceState) {
        let deadline = Instant::now() + SOON * 4;
        while self.state() != state {
            assert!(
                Instant::now() < deadline,
                "{:?}, not {state:?}",
                self.state()
            );
            sleep(Duration::from_millis(2)).await;
        }
    }

    pub(super) fn state(&self) -> SourceState {
        self.registry.sources()[0].state
    }

    /// The API server is away: nothing listens there, and its connections are cut.
    pub(super) async fn stop_api(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
    }

    pub(super) async fn start_api(&mut self) {
        let listener = TcpListener::bind(self.api.addr).await.unwrap();
        self.serving = Some(self.api.serve(listener));
    }
}
