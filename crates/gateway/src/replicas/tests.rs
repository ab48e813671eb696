//! Gateways in one process that meet at a hub, under a paused clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use routing::Probe::Passed;
use routing::replicas::{Journal, Sight};
use routing::{LoadFigures, Params, PolicyKind, Prompt, Request};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::link::{Connector, Link, LinkError};
use super::test_server::eventually;
use super::{Exchange, Leaving, ReplicaStatus, Replicas};
use crate::balancer::{Balancer, Constraints, RolePolicies, Selection, select};
use crate::config::{
    AdmissionSection, ConnectionSection, FleetSection, Live, ModelMatching, Options, WorkerUrl,
    ZoneSection,
};
use crate::fleet::{Fleet, Worker, WorkerFactory, WorkerSpec, invalidate_cache, record_probe};
use crate::telemetry::Metrics;
use crate::upstream::ConnectionLimits;

const WORKERS: usize = 8;

/// What happens to messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Up,
    /// Nothing is answered.
    Frozen,
    /// There is no server.
    Down,
}

#[derive(Clone, Debug, Default)]
struct Hub(Arc<Mutex<HubState>>);

#[derive(Debug, Default)]
struct HubState {
    state: State,
    listeners: Vec<([String; 2], UnboundedSender<Vec<u8>>)>,
    published: Vec<usize>,
}

struct HubLink {
    hub: Hub,
    messages: UnboundedReceiver<Vec<u8>>,
}

impl Hub {
    fn set(&self, state: State) {
        let mut hub = self.0.lock().unwrap();
        hub.state = state;
        if state == State::Down {
            hub.listeners.clear();
        }
    }

    fn state(&self) -> State {
        self.0.lock().unwrap().state
    }

    /// Sizes of the messages so far.
    fn published(&self) -> Vec<usize> {
        self.0.lock().unwrap().published.clone()
    }

    async fn answer(&self) -> Result<(), LinkError> {
        match self.state() {
            State::Up => Ok(()),
            State::Down => Err(LinkError("refused".to_owned())),
            State::Frozen => {
                sleep(Duration::from_secs(1)).await;
                Err(LinkError("no answer in time".to_owned()))
            }
        }
    }
}

impl Connector for Hub {
    type Link = HubLink;

    async fn connect(&self, channels: [String; 2]) -> Result<HubLink, LinkError> {
        self.answer().await?;
        let (sender, messages) = unbounded_channel();
        self.0.lock().unwrap().listeners.push((channels, sender));
        Ok(HubLink {
            hub: self.clone(),
            messages,
        })
    }

    fn group(&self) -> String {
        "smg:0".to_owned()
    }
}

impl Link for HubLink {
    async fn publish(&mut self, channel: &str, message: Vec<u8>) -> Result<(), LinkError> {
        self.hub.answer().await?;
        let mut hub = self.hub.0.lock().unwrap();
        hub.published.push(message.len());
        for (channels, listener) in &hub.listeners {
            if channels.iter().any(|listened| listened == channel) {
                let _ = listener.send(message.clone());
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        self.messages.recv().await
    }
}

/// [`WORKERS`] ready workers behind a policy, beginning with this one.
pub(super) fn balancer(
    kind: PolicyKind,
    params: Params,
    first: usize,
    metrics: &Arc<Metrics>,
) -> Arc<Balancer> {
    let options = Options {
        health_success_threshold: 1,
        ..Options::default()
    };
    let policies = RolePolicies::new(kind, move |kind| kind.build(&params));
    let fleet = Fleet::new(FleetSection {
        slow_start: Duration::ZERO,
        ..FleetSection::from(&options)
    });
    let limits = ConnectionLimits::new(&ConnectionSection::from(&options), 1);
    let factory = WorkerFactory::new(&fleet, &Live::from(&options), limits, metrics);
    for at in 0..WORKERS {
        let url = format!("http://w{}:1", (first + at) % WORKERS);
        let spec = WorkerSpec::new(WorkerUrl::parse(&url).unwrap());
        let worker = fleet.add(|slot| factory.build(spec, slot, None));
        record_probe(&fleet, &worker.endpoint, Passed);
    }
    let section = AdmissionSection::from(&options);
    let zones = ZoneSection::default();
    Balancer::new(fleet, policies, &section, ModelMatching::Auto, zones)
}

/// A gateway with [`WORKERS`] ready workers.
struct Gateway {
    balancer: Arc<Balancer>,
    status: Arc<ReplicaStatus>,
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
    leaving: Leaving,
}

impl Gateway {
    /// The fleet of the other gateways; slots and workers need not be in the same order.
    fn start(hub: &Hub, first: usize) -> Self {
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let journal = Arc::new(Journal::new(1 << 20));
        let params = Params {
            journal: Some(Arc::clone(&journal)),
            ..Params::default()
        };
        let balancer = balancer(PolicyKind::CacheAware, params, first, &metrics);
        let status = Arc::new(ReplicaStatus::default());
        let parts = Replicas {
            balancer: Arc::clone(&balancer),
            journal: Arc::clone(&journal),
            status: Arc::clone(&status),
            metrics: Arc::clone(&metrics),
            address: "hub:1".to_owned(),
        };
        Self {
            balancer,
            status,
            metrics,
            journal,
            leaving: Exchange::new(parts, hub.clone()).spawn(),
        }
    }

    fn place(&self, text: &[u8]) -> Selection {
        let request = Request {
            prompt: Prompt::text([text, b"", b""]),
            seed: fastrand::u64(..),
            ..Request::default()
        };
        select(&self.balancer, &request, Constraints::default()).unwrap()
    }

    /// The worker that is believed to hold this prompt, and how much of it.
    fn belief(&self, text: &[u8]) -> (String, u64) {
        let request = Request {
            prompt: Prompt::text([text, b"", b""]),
            ..Request::default()
        };
        let best = |_, ranked: &[routing::Ranked<'_>]| {
            let best = ranked.iter().max_by_key(|ranked| ranked.matched_tokens);
            let best = best.unwrap();
            (best.candidate.url.to_string(), best.matched_tokens)
        };
        self.balancer.rank(&request, best).unwrap()
    }

    fn worker(&self, name: &str) -> Arc<Worker> {
        self.balancer.fleet.find(name).unwrap()
    }

    fn shown(&self) -> Value {
        self.status.to_json()
    }

    fn live(&self) -> usize {
        let shown = self.shown();
        let replicas = shown["replicas"].as_array().unwrap();
        replicas.iter().filter(|row| row["live"] == true).count()
    }
}

/// A prompt of its own, of some blocks.
fn prompt(number: u8) -> Vec<u8> {
    (0..4096_u32)
        .map(|at| (at / 64) as u8 ^ number.wrapping_mul(31))
        .collect()
}

/// Two gateways that hear each other.
async fn pair(hub: &Hub) -> (Gateway, Gateway) {
    let (one, two) = (Gateway::start(hub, 0), Gateway::start(hub, 3));
    eventually("they hear each other", || {
        one.live() == 1 && two.live() == 1
    })
    .await;
    (one, two)
}

#[tokio::test(start_paused = true)]
async fn placements_and_requests_of_one_gateway_are_known_to_the_other() {
    let hub = Hub::default();
    let (one, two) = pair(&hub).await;
    let placed = one.place(&prompt(1));
    let url = placed.in_flight.worker.url().as_str().to_owned();
    let there = two.worker(&url);
    eventually("the request counts", || there.load.requests() == 1).await;
    assert_eq!(there.load.own_requests(), 0);
    assert!(there.load.queued_tokens() > 900);
    let (worker, tokens) = two.belief(&prompt(1));
    assert_eq!((worker, tokens), one.belief(&prompt(1)));
    assert!(tokens > 900);
    drop(placed);
    eventually("it has ended", || there.load.requests() == 0).await;
    assert_eq!(two.place(&prompt(1)).in_flight.worker.url().as_str(), url);
}

#[tokio::test(start_paused = true)]
async fn cold_gateways_that_share_nothing_choose_alike() {
    let (one, two) = (
        Gateway::start(&Hub::default(), 0),
        Gateway::start(&Hub::default(), 5),
    );
    let mut used = std::collections::BTreeSet::new();
    for number in 0..40 {
        let urls = [&one, &two].map(|gateway| {
            let placed = gateway.place(&prompt(number));
            placed.in_flight.worker.url().as_str().to_owned()
        });
        assert_eq!(urls[0], urls[1]);
        used.extend(urls);
    }
    assert!(used.len() > 4, "{used:?}");
}

#[tokio::test(start_paused = true)]
async fn new_gateway_takes_over_what_others_know() {
    let hub = Hub::default();
    let old = Gateway::start(&hub, 0);
    for number in 0..30 {
        drop(old.place(&prompt(number)));
    }
    sleep(Duration::from_secs(30)).await;
    let new = Gateway::start(&hub, 2);
    assert_eq!(new.belief(&prompt(7)).1, 0);
    eventually("it is warm", || new.shown()["warmed_up"] == true).await;
    for number in 0..30 {
        assert_eq!(new.belief(&prompt(number)), old.belief(&prompt(number)));
    }
}

#[tokio::test(start_paused = true)]
async fn hub_that_is_away_or_frozen_holds_up_nothing_and_all_is_known_again_when_it_is_back() {
    for state in [State::Down, State::Frozen] {
        let hub = Hub::default();
        let (one, two) = pair(&hub).await;
        let held = one.place(&prompt(1));
        let there = two.worker(held.in_flight.worker.url().as_str());
        eventually("the request counts", || there.load.requests() == 1).await;
        hub.set(state);
        eventually("it ages out", || there.load.requests() == 0).await;
        eventually("the loss shows", || one.shown()["connected"] == false).await;
        assert_eq!(one.journal.sight(), Sight::Apart(2));
        assert_eq!((one.live(), two.live()), (0, 0));
        let asked = Instant::now();
        for number in 2..20 {
            drop(one.place(&prompt(number)));
        }
        assert_eq!(Instant::now(), asked);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(two.belief(&prompt(9)).1, 0);
        hub.set(State::Up);
        eventually("they hear each other", || {
            one.live() == 1 && two.live() == 1
        })
        .await;
        eventually("the request counts", || there.load.requests() == 1).await;
        let known = |number| two.belief(&prompt(number)).1 > 900;
        eventually("what was missed", || (2..20).all(known)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn gateway_that_stops_takes_its_requests_along() {
    let hub = Hub::default();
    let (one, two) = pair(&hub).await;
    let held = one.place(&prompt(1));
    let there = two.worker(held.in_flight.worker.url().as_str());
    eventually("the request counts", || there.load.requests() == 1).await;
    assert_eq!(two.journal.sight(), Sight::Shared);
    let before = Instant::now();
    one.leaving.finish().await;
    eventually("it is gone", || there.load.requests() == 0).await;
    assert!(before.elapsed() < Duration::from_millis(100));
    assert_eq!(two.journal.sight(), Sight::Unheard);
}

#[tokio::test(start_paused = true)]
async fn worker_that_joins_later_has_the_requests_of_other_gateways() {
    let hub = Hub::default();
    let (one, two) = (Gateway::start(&hub, 0), Gateway::start(&hub, 3));
    let held = one.place(&prompt(1));
    let there = two.worker(held.in_flight.worker.url().as_str());
    eventually("the request counts", || there.load.requests() == 1).await;
    // A flushed cache holds nothing, whatever others have said before.
    eventually("the prompt is known", || two.belief(&prompt(1)).1 > 0).await;
    invalidate_cache(&two.balancer.fleet, &there);
    assert_eq!(two.belief(&prompt(1)).1, 0);
    assert_eq!(there.load.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn bandwidth_stays_within_its_bound_and_shows_in_metrics() {
    let hub = Hub::default();
    let (one, two) = pair(&hub).await;
    eventually("nothing more is asked", || {
        [&one, &two]
            .iter()
            .all(|it| it.shown()["warmed_up"] == true)
    })
    .await;
    let (began, before) = (Instant::now(), hub.published().len());
    for number in 0..200 {
        let long: Vec<u8> = prompt(number)
            .iter()
            .cycle()
            .take(60_000)
            .copied()
            .collect();
        drop(one.place(&long));
        sleep(Duration::from_millis(5)).await;
    }
    let sent = &hub.published()[before..];
    assert!(sent.iter().all(|size| *size <= 48 * 1024), "{sent:?}");
    let bytes: usize = sent.iter().sum();
    assert!(bytes as f64 <= 983_040.0 * (began.elapsed().as_secs_f64() + 0.1));
    sleep(Duration::from_secs(2)).await;
    let page = one.metrics.render().unwrap();
    let shown = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(
        (shown("smg_replicas "), shown("smg_shared_state_connected ")),
        (1, 1)
    );
    assert!(shown("smg_replica_bytes_total{direction=\"sent\"}") as usize >= bytes / 2);
    assert!(shown("smg_replica_placements_total{direction=\"sent\"}") >= 190);
    assert!(two.shown()["replicas"][0]["placements"].as_u64().unwrap() >= 190);
}

/// A hub whose listeners get nothing, while it takes everything.
#[tokio::test(start_paused = true)]
async fn gateway_whose_own_messages_do_not_come_back_connects_anew() {
    let hub = Hub::default();
    let one = Gateway::start(&hub, 0);
    eventually("it is connected", || one.shown()["connected"] == true).await;
    hub.0
        .lock()
        .unwrap()
        .listeners
        .iter_mut()
        .for_each(|(channels, _)| {
            *channels = [String::new(), String::new()];
        });
    eventually("it has noticed", || {
        let listeners = &hub.0.lock().unwrap().listeners;
        listeners
            .iter()
            .any(|(channels, _)| !channels[0].is_empty())
    })
    .await;
    eventually("it hears itself", || one.shown()["connected"] == true).await;
}

#[tokio::test(start_paused = true)]
async fn report_of_a_worker_is_forgotten_when_another_gateway_turns_up() {
    let hub = Hub::default();
    let one = Gateway::start(&hub, 0);
    let worker = one.worker("http://w1:1");
    let reported = LoadFigures {
        requests: 3,
        queued_tokens: 500,
        kv_tokens: 500,
    };
    worker.load.set_others(reported, worker.load.known());
    let two = Gateway::start(&hub, 3);
    let _held = two.place(&prompt(1));
    eventually("they hear each other", || one.live() == 1).await;
    assert_eq!(worker.load.all_requests(), worker.load.requests());
}
