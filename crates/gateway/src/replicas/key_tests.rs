//! Routing keys of several gateways in one process, under a paused clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use routing::sticky::{Assignment, Claim, SharedKey};
use routing::{Params, PolicyKind, Request, TieBreak};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::exchange::Leaving;
use super::key_link::{KeyLink, KeyServer, Page, PoolKey};
use super::keys::{KeyParts, Keys};
use super::link::LinkError;
use super::status::ReplicaStatus;
use super::test_server::{Answers, eventually};
use super::tests::balancer;
use crate::balancer::{Balancer, Constraints, select};
use crate::telemetry::Metrics;

const KEPT: Duration = Duration::from_hours(1);

/// A server in which the first claim of a key decides.
#[derive(Clone, Default)]
struct Server {
    answers: Answers,
    state: Arc<Mutex<ServerState>>,
}

#[derive(Default)]
struct ServerState {
    /// Takes everything, and publishes nothing.
    is_mute: bool,
    keys: BTreeMap<(u64, u64), Assignment>,
    listeners: Vec<UnboundedSender<Vec<PoolKey>>>,
    links: usize,
}

struct ServerLink {
    server: Server,
    news: UnboundedReceiver<Vec<PoolKey>>,
}

impl Server {
    fn change(&self, change: impl FnOnce(&mut ServerState)) {
        change(&mut self.state.lock().unwrap());
    }
}

impl ServerState {
    fn publish(&mut self, news: &[PoolKey]) {
        if !self.is_mute {
            let listeners = self.listeners.iter();
            listeners.for_each(|it| drop(it.send(news.to_vec())));
        }
    }
}

fn pool_key((pool, key): (u64, u64), assignment: Assignment) -> PoolKey {
    let left = KEPT;
    PoolKey {
        pool,
        key: SharedKey {
            key,
            assignment,
            left,
        },
    }
}

impl KeyServer for Server {
    type Link = ServerLink;

    async fn connect(&self) -> Result<ServerLink, LinkError> {
        self.answers.in_time().await?;
        let (sender, news) = unbounded_channel();
        self.change(|state| {
            state.listeners.push(sender);
            state.links += 1;
        });
        Ok(ServerLink {
            server: self.clone(),
            news,
        })
    }
}

impl KeyLink for ServerLink {
    async fn claim(&mut self, pool: u64, claims: &[Claim]) -> Result<Vec<Assignment>, LinkError> {
        self.server.answers.in_time().await?;
        let mut state = self.server.state.lock().unwrap();
        let mut after = Vec::new();
        for claim in claims {
            let version = claim.assignment.version.max(1);
            let first = Assignment {
                version,
                ..claim.assignment
            };
            let known = state.keys.entry((pool, claim.key)).or_insert(first);
            let known = *known;
            after.push(known);
            state.publish(&[pool_key((pool, claim.key), known)]);
        }
        Ok(after)
    }

    async fn page(&mut self, from: u64) -> Result<Page, LinkError> {
        self.server.answers.in_time().await?;
        let state = self.server.state.lock().unwrap();
        let all = state.keys.iter().skip(from as usize).take(10);
        let keys = all.map(|(name, known)| pool_key(*name, *known));
        let next = from + 10;
        Ok(Page {
            keys: keys.collect(),
            next: (next < state.keys.len() as u64).then_some(next),
        })
    }

    async fn echo(&mut self) -> Result<(), LinkError> {
        self.server.answers.in_time().await?;
        self.server.change(|state| state.publish(&[]));
        Ok(())
    }

    async fn next(&mut self) -> Option<Vec<PoolKey>> {
        self.news.recv().await
    }
}

struct Gateway {
    balancer: Arc<Balancer>,
    status: Arc<ReplicaStatus>,
    metrics: Arc<Metrics>,
    leaving: Leaving,
}

impl Gateway {
    /// Left alone, it assigns keys by chance.
    fn start(server: &Server, first: usize) -> Self {
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let params = Params {
            tie_break: TieBreak::Random,
            ..Params::default()
        };
        let balancer = balancer(PolicyKind::Manual, params, first, &metrics);
        let status = Arc::new(ReplicaStatus::default());
        let parts = KeyParts {
            balancer: Arc::clone(&balancer),
            status: Arc::clone(&status),
            metrics: Arc::clone(&metrics),
            address: "hub:1".to_owned(),
        };
        Self {
            balancer,
            status,
            metrics,
            leaving: Keys::new(parts, server.clone()).spawn(),
        }
    }

    /// The worker that serves a key.
    fn serve(&self, key: &str) -> String {
        let request = Request {
            routing_key: Some(key),
            seed: fastrand::u64(..),
            now: self.balancer.fleet.now(),
            ..Request::default()
        };
        let chosen = select(&self.balancer, &request, Constraints::default()).unwrap();
        chosen.in_flight.worker.url().as_str().to_owned()
    }

    fn shown(&self) -> Value {
        self.status.keys()
    }

    async fn is(&self, state: &str) {
        eventually(state, || self.shown()["state"] == state).await;
    }
}

fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("session {number}")).collect()
}

fn served(gateway: &Gateway, keys: &[String]) -> Vec<String> {
    keys.iter().map(|key| gateway.serve(key)).collect()
}

#[tokio::test(start_paused = true)]
async fn first_claim_of_a_key_decides_for_all_gateways_and_for_one_that_starts_later() {
    let server = Server::default();
    let (one, two) = (Gateway::start(&server, 0), Gateway::start(&server, 3));
    one.is("shared").await;
    two.is("shared").await;
    let keys = names(0..60);
    // At a time, so by chance mostly at different workers.
    let at_first = [served(&one, &keys), served(&two, &keys)];
    assert_ne!(at_first[0], at_first[1]);
    sleep(Duration::from_millis(100)).await;
    let agreed = served(&one, &keys);
    assert_eq!(agreed, served(&two, &keys));
    for (at, worker) in agreed.iter().enumerate() {
        assert!(*worker == at_first[0][at] || *worker == at_first[1][at]);
    }
    let three = Gateway::start(&server, 5);
    eventually("it has read all", || three.shown()["warmed_up"] == true).await;
    assert_eq!(agreed, served(&three, &keys));
    sleep(Duration::from_secs(2)).await;
    let (shown, other) = (one.shown(), two.shown());
    let sum = |of: &str| shown[of].as_u64().unwrap() + other[of].as_u64().unwrap();
    assert_eq!(
        (sum("assigned") + sum("taken_over"), sum("keys")),
        (120, 120)
    );
    assert!(sum("taken_over") > 20 && shown["unclaimed"] == 0);
    let page = one.metrics.render().unwrap();
    let line = "smg_shared_key_claims_total{result=\"assigned\"} ";
    assert!(page.contains(line) && page.contains("smg_shared_keys_connected 1\n"));
}

#[tokio::test(start_paused = true)]
async fn keys_go_on_without_the_server_and_agree_again_when_it_is_back_even_without_its_data() {
    for loses_data in [false, true] {
        let server = Server::default();
        let (one, two) = (Gateway::start(&server, 0), Gateway::start(&server, 3));
        one.is("shared").await;
        two.is("shared").await;
        let keys = names(0..30);
        let before = served(&one, &keys);
        sleep(Duration::from_millis(100)).await;
        server.answers.freeze();
        one.is("apart").await;
        two.is("apart").await;
        let began = Instant::now();
        assert_eq!(
            (served(&one, &keys), served(&two, &keys)),
            (before.clone(), before.clone())
        );
        let new = names(30..60);
        assert_ne!(served(&one, &new), served(&two, &new));
        assert_eq!(Instant::now(), began, "nothing waits");
        if loses_data {
            server.change(|state| state.keys.clear());
        }
        server.answers.resume();
        one.is("shared").await;
        two.is("shared").await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(
            (served(&one, &keys), served(&two, &keys)),
            (before.clone(), before)
        );
        assert_eq!(served(&one, &new), served(&two, &new));
        assert_eq!(server.state.lock().unwrap().keys.len(), 60);
    }
}

#[tokio::test(start_paused = true)]
async fn gateway_whose_own_news_do_not_come_back_connects_anew() {
    let server = Server::default();
    let one = Gateway::start(&server, 0);
    one.is("shared").await;
    server.change(|state| state.is_mute = true);
    eventually("it has noticed", || one.shown()["state"] == "apart").await;
    server.change(|state| state.is_mute = false);
    one.is("shared").await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(server.state.lock().unwrap().links, 2);
}

#[tokio::test(start_paused = true)]
async fn gateway_that_stops_leaves_its_last_keys_behind() {
    let server = Server::default();
    let one = Gateway::start(&server, 0);
    one.is("shared").await;
    sleep(Duration::from_millis(50)).await;
    let keys = names(0..500);
    let served_by_one = served(&one, &keys);
    one.leaving.finish().await;
    let two = Gateway::start(&server, 0);
    eventually("it has read all", || two.shown()["warmed_up"] == true).await;
    assert_eq!(served(&two, &keys), served_by_one);
}
