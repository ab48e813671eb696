//! Limits of several gateways in one process, under a paused clock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use routing::quota::{
    Bucket, Grant, QueueAnswer, QueueAsk, QueueRoom, QueueUse, Quota, RateLimit, SharedLimits,
    SharedQueue, SlotCount, SlotGrant,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::exchange::Leaving;
use super::link::LinkError;
use super::quota_link::{Granted, QuotaLink, QuotaServer, Round};
use super::quotas::{QuotaParts, Quotas};
use super::status::ReplicaStatus;
use super::test_server::{Answers, eventually};
use crate::config::SharedStateOnFailure;
use crate::config::SharedStateOnFailure::{Closed, Local, Open};
use crate::telemetry::Metrics;

const LIMIT: RateLimit = RateLimit {
    units: 600,
    period: Duration::from_mins(1),
};

/// A server with one bucket per limit, which time does not fill.
#[derive(Clone, Default)]
struct Server {
    answers: Answers,
    state: Arc<Mutex<ServerState>>,
}

#[derive(Default)]
struct ServerState {
    taken: HashMap<Arc<str>, u64>,
    gateways: Vec<u64>,
    /// Limits of which a gateway has had too few.
    short: HashSet<Arc<str>>,
    /// What gateways have said of queues.
    queues: HashMap<Arc<str>, BTreeMap<u64, QueueAsk>>,
}

impl Server {
    /// Units of a limit that gateways hold, or have used.
    fn taken(&self, name: &str) -> u64 {
        let state = self.state.lock().unwrap();
        state.taken.get(name).copied().unwrap_or(0)
    }
}

impl QuotaServer for Server {
    type Link = Self;

    async fn connect(&self) -> Result<Self, LinkError> {
        self.answers.in_time().await.map(|()| self.clone())
    }
}

impl QuotaLink for Server {
    async fn exchange(&mut self, round: &Round) -> Result<Granted, LinkError> {
        self.answers.in_time().await?;
        let mut state = self.state.lock().unwrap();
        state.gateways.retain(|known| *known != round.gateway);
        if !round.leaves {
            state.gateways.push(round.gateway);
        }
        let mut grants = Vec::new();
        for (name, (limit, ask)) in &round.asks {
            let taken = state.taken.entry(Arc::clone(name)).or_default();
            let (wanted, back) = (ask.units.max(0), ask.units.min(0));
            let units = wanted.unsigned_abs().min(limit.units - *taken);
            *taken = *taken + units - back.unsigned_abs();
            if units < ask.needed {
                state.short.insert(Arc::clone(name));
            }
            let short = state.short.contains(name);
            grants.push(Grant { units, short });
        }
        let gateways = state.gateways.len() as u64;
        let slots = round.slots.iter().map(|(_, ask)| SlotGrant {
            allowed: ask.total / gateways.max(1),
            short: false,
        });
        let mut queues = Vec::new();
        for (name, ask) in &round.queues {
            let said = state.queues.entry(Arc::clone(name)).or_default();
            said.insert(round.gateway, *ask);
            queues.push(QueueAnswer {
                own: said.keys().take_while(|id| **id != round.gateway).count(),
                asks: said.values().copied().collect(),
            });
        }
        Ok(Granted {
            gateways,
            grants,
            slots: slots.collect(),
            queues,
        })
    }
}

struct Gateway {
    limits: Arc<SharedLimits>,
    status: Arc<ReplicaStatus>,
    metrics: Arc<Metrics>,
    leaving: Leaving,
}

impl Gateway {
    fn start(server: &Server, on_failure: SharedStateOnFailure) -> Self {
        let limits = Arc::new(SharedLimits::default());
        let status = Arc::new(ReplicaStatus::default());
        let metrics = Arc::new(Metrics::new(None).unwrap());
        let parts = QuotaParts {
            limits: Arc::clone(&limits),
            balancer: None,
            on_failure,
            status: Arc::clone(&status),
            metrics: Arc::clone(&metrics),
            address: "hub:1".to_owned(),
        };
        Self {
            limits,
            status,
            metrics,
            leaving: Quotas::new(parts, server.clone()).spawn(),
        }
    }

    fn share(&self, name: &str) -> Arc<Quota> {
        let quota = Arc::new(Quota::new(LIMIT));
        let bucket: Weak<Quota> = Arc::downgrade(&quota);
        self.limits.add(name, bucket as Weak<dyn Bucket>);
        quota
    }

    fn share_slots(&self, name: &str) -> Arc<SlotCount> {
        let slots = Arc::new(SlotCount::new(40));
        self.limits.add_slots(name, &slots);
        slots
    }

    fn share_queue(&self, name: &str) -> Arc<Line> {
        let line = Arc::new(Line {
            size: AtomicU64::new(10),
            room: Mutex::new(QueueRoom::ALL),
            waiting: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        self.limits.add_queue(name, &line);
        line
    }

    fn shown(&self) -> Value {
        self.status.limits()
    }

    async fn is(&self, state: &str) {
        eventually(state, || self.shown()["state"] == state).await;
    }
}

fn passed(quota: &Quota) -> usize {
    (0..1000).filter(|_| quota.take(1).is_ok()).count()
}

#[tokio::test(start_paused = true)]
async fn gateways_hold_parts_of_a_limit_and_give_them_back_when_they_stop() {
    let server = Server::default();
    let (one, two) = (
        Gateway::start(&server, Local),
        Gateway::start(&server, Local),
    );
    let (quota, other) = (one.share("a"), two.share("a"));
    one.is("shared").await;
    two.is("shared").await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!((quota.held().level, other.held().level), (150, 150));
    assert_eq!(server.taken("a"), 300);
    let mut used = 0;
    for _ in 0..100 {
        used += passed(&quota);
        sleep(Duration::from_millis(50)).await;
    }
    // The other one, which has no requests, has given back its part.
    assert_eq!((used, other.held().level), (600, 0));
    let shown = one.shown();
    assert_eq!(
        (shown["gateways"].as_u64(), shown["count"].as_u64()),
        (Some(2), Some(1))
    );
    assert_eq!(shown["limits"][0]["name"], "a");
    let page = one.metrics.render().unwrap();
    let line = "smg_shared_limit_units_total{direction=\"taken\",limit=\"a\"}";
    let line = page.lines().find(|shown| shown.starts_with(line)).unwrap();
    let taken: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(
        taken >= 600 && page.contains("smg_shared_limits 1\n"),
        "{page}"
    );

    let fresh = one.share("b");
    sleep(Duration::from_secs(2)).await;
    assert_eq!((fresh.held().level, server.taken("b")), (150, 150));
    one.leaving.finish().await;
    assert_eq!((fresh.held().level, server.taken("b")), (0, 0));
    assert_eq!(server.state.lock().unwrap().gateways.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn gateway_without_the_server_applies_its_part_all_or_nothing_and_is_in_step_again_later() {
    for (on_failure, per_minute) in [(Local, 300_usize), (Open, 600), (Closed, 0)] {
        let server = Server::default();
        let gateways = [0; 2].map(|_| Gateway::start(&server, on_failure));
        let quotas = gateways.each_ref().map(|gateway| gateway.share("a"));
        for gateway in &gateways {
            gateway.is("shared").await;
        }
        sleep(Duration::from_secs(2)).await;
        let began = Instant::now();
        server.answers.freeze();
        for gateway in &gateways {
            gateway.is("on_failure").await;
        }
        assert!(began.elapsed() < Duration::from_millis(900));
        sleep(Duration::from_millis(50)).await;
        passed(&quotas[0]);
        let mut used = 0;
        for _ in 0..600 {
            sleep(Duration::from_millis(100)).await;
            used += passed(&quotas[0]);
        }
        assert!(per_minute.abs_diff(used) <= 3, "{on_failure:?}: {used}");
        let before = server.taken("a");
        server.answers.resume();
        for gateway in &gateways {
            gateway.is("shared").await;
        }
        sleep(Duration::from_secs(2)).await;
        // What was filled in meanwhile is replaced by what the server grants.
        let held: i64 = quotas.iter().map(|quota| quota.held().level).sum();
        let granted = server.taken("a") - before;
        assert_eq!(held.unsigned_abs(), granted, "{on_failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn gateway_that_has_never_reached_the_server_applies_the_whole_limit_unless_it_is_closed() {
    for (on_failure, at_once) in [(Local, 600), (Open, 600), (Closed, 0)] {
        let server = Server::default();
        server.answers.freeze();
        let gateway = Gateway::start(&server, on_failure);
        let quota = gateway.share("a");
        gateway.is("on_failure").await;
        sleep(Duration::from_millis(50)).await;
        assert_eq!(passed(&quota), at_once, "{on_failure:?}");
        let page = gateway.metrics.render().unwrap();
        assert!(page.contains("smg_shared_limits_on_failure 1\n"), "{page}");
    }
}

fn free(slots: &SlotCount) -> usize {
    let taken = (0..1000).take_while(|_| slots.take()).count();
    (0..taken).for_each(|_| slots.give_back());
    taken
}

#[tokio::test(start_paused = true)]
async fn slots_are_divided_by_the_server_and_without_it_by_the_option() {
    for (on_failure, apart) in [(Local, 20), (Open, 40), (Closed, 0)] {
        let server = Server::default();
        let gateways = [0; 2].map(|_| Gateway::start(&server, on_failure));
        let slots = gateways
            .each_ref()
            .map(|gateway| gateway.share_slots("at_a_time:k"));
        assert_eq!(free(&slots[0]), 0, "none before the server has been asked");
        for gateway in &gateways {
            gateway.is("shared").await;
        }
        sleep(Duration::from_secs(2)).await;
        assert_eq!(slots.each_ref().map(|slots| free(slots)), [20; 2]);
        let held = (0..15).take_while(|_| slots[0].take()).count();
        assert_eq!(held, 15);
        sleep(Duration::from_secs(2)).await;
        let shown = &gateways[0].shown()["slots"][0];
        let figures = ["slots", "allowed", "used"].map(|name| shown[name].as_u64());
        assert_eq!(figures, [Some(40), Some(20), Some(15)]);
        let page = gateways[0].metrics.render().unwrap();
        assert!(page.contains("smg_shared_slots{limit=\"at_a_time\",state=\"used\"} 15\n"));
        server.answers.freeze();
        for gateway in &gateways {
            gateway.is("on_failure").await;
        }
        sleep(Duration::from_millis(50)).await;
        // What is in flight stays.
        assert_eq!(
            (free(&slots[0]) + held).max(15),
            apart.max(15),
            "{on_failure:?}"
        );
        assert_eq!(free(&slots[1]), apart, "{on_failure:?}");
        server.answers.resume();
        for gateway in &gateways {
            gateway.is("shared").await;
        }
        sleep(Duration::from_millis(200)).await;
        assert_eq!(
            (free(&slots[0]), free(&slots[1])),
            (5, 20),
            "{on_failure:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn slots_of_a_gateway_that_has_never_reached_the_server_are_as_the_option_says() {
    for (on_failure, at_once) in [(Local, 40), (Open, 40), (Closed, 0)] {
        let server = Server::default();
        server.answers.freeze();
        let gateway = Gateway::start(&server, on_failure);
        let slots = gateway.share_slots("a");
        gateway.is("on_failure").await;
        // While it tries for the first time, others may have them all.
        assert_eq!(free(&slots), 0);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(free(&slots), at_once, "{on_failure:?}");
        drop(slots);
        gateway.is("none").await;
    }
}

/// Requests that wait until they are pushed out.
#[derive(Debug)]
struct Line {
    size: AtomicU64,
    room: Mutex<QueueRoom>,
    waiting: AtomicU64,
    refused: AtomicU64,
}

impl Line {
    /// So many requests come; returns how many wait.
    fn burst(&self, count: u64) -> u64 {
        let most = self.room.lock().unwrap().of(self.total());
        let before = self.waiting();
        let more = count.min(most.saturating_sub(before));
        self.waiting.store(before + more, Relaxed);
        self.refused.fetch_add(count - more, Relaxed);
        more
    }

    fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }
}

impl SharedQueue for Line {
    fn total(&self) -> u64 {
        self.size.load(Relaxed)
    }

    fn usage(&self) -> QueueUse {
        QueueUse {
            waiting: self.waiting(),
            refused: self.refused.load(Relaxed),
        }
    }

    fn set_room(&self, room: QueueRoom) {
        *self.room.lock().unwrap() = room;
    }

    fn shrink(&self, most: u64) -> u64 {
        let out = self.waiting().saturating_sub(most);
        self.waiting.fetch_sub(out, Relaxed);
        self.refused.fetch_add(out, Relaxed);
        out
    }
}

async fn sharing_a_queue(
    server: &Server,
    on_failure: SharedStateOnFailure,
) -> [(Gateway, Arc<Line>); 2] {
    let gateways = [(); 2].map(|()| Gateway::start(server, on_failure));
    let shared = gateways.map(|gateway| {
        let line = gateway.share_queue("workers:m");
        (gateway, line)
    });
    for (gateway, _) in &shared {
        gateway.is("shared").await;
    }
    // Both are known to both.
    sleep(Duration::from_millis(300)).await;
    shared
}

#[tokio::test(start_paused = true)]
async fn burst_at_one_gateway_finds_all_of_the_queue_and_of_two_the_rest_is_pushed_out() {
    let server = Server::default();
    let [(one, line), (two, other)] = sharing_a_queue(&server, Local).await;
    assert_eq!(line.burst(12), 10);
    sleep(Duration::from_millis(200)).await;
    assert_eq!((line.waiting(), other.burst(3)), (10, 0));
    line.waiting.store(0, Relaxed);
    sleep(Duration::from_millis(200)).await;

    assert_eq!((line.burst(10), other.burst(10)), (10, 10));
    sleep(Duration::from_millis(130)).await;
    assert_eq!((line.waiting(), other.waiting()), (5, 5));
    sleep(Duration::from_secs(4)).await;
    assert_eq!((line.waiting(), other.waiting()), (5, 5));
    let shown = one.shown();
    assert_eq!(shown["count"], 1);
    let row = json!({
        "name": "workers:m", "size": 10, "allowed": 5, "waiting": 5, "elsewhere": 5, "short": false,
    });
    assert_eq!(shown["queues"], json!([row]));
    let page = one.metrics.render().unwrap();
    for state in ["allowed", "waiting", "elsewhere"] {
        let series =
            format!("smg_shared_queue_requests{{queue=\"workers\",state=\"{state}\"}} 5\n");
        assert!(page.contains(&series), "{series}: {page}");
    }
    assert!(page.contains("smg_shared_queue_pushed_out_total{queue=\"workers\"} 5\n"));
    // What waits at a gateway that stops takes no places.
    one.leaving.finish().await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(other.burst(9), 5);
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn without_the_server_new_requests_wait_as_the_option_says_and_those_that_wait_stay() {
    for (on_failure, more) in [(Local, [0, 5]), (Open, [2, 10]), (Closed, [0, 0])] {
        let server = Server::default();
        let [(one, line), (two, other)] = sharing_a_queue(&server, on_failure).await;
        assert_eq!(line.burst(8), 8);
        sleep(Duration::from_millis(200)).await;
        server.answers.freeze();
        one.is("on_failure").await;
        two.is("on_failure").await;
        sleep(Duration::from_millis(50)).await;
        assert_eq!([line.burst(20), other.burst(20)], more, "{on_failure:?}");
        sleep(Duration::from_secs(5)).await;
        let waiting = (line.waiting(), other.waiting());
        assert_eq!(waiting, (8 + more[0], more[1]), "{on_failure:?}");
        server.answers.resume();
        one.is("shared").await;
        two.is("shared").await;
        sleep(Duration::from_millis(130)).await;
        let sum = line.waiting() + other.waiting();
        assert_eq!(sum, 10.min(waiting.0 + waiting.1), "{on_failure:?}");
        // As before.
        other.burst(20);
        sleep(Duration::from_millis(130)).await;
        assert_eq!(line.waiting() + other.waiting(), 10, "{on_failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn queue_in_which_none_may_wait_is_not_asked_about_until_its_size_changes() {
    let server = Server::default();
    let gateway = Gateway::start(&server, Local);
    let line = gateway.share_queue("workers");
    line.size.store(0, Relaxed);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(gateway.shown()["state"], "none");
    line.size.store(3, Relaxed);
    gateway.is("shared").await;
    assert_eq!(line.burst(5), 3);
    // Smaller: those that wait stay.
    line.size.store(1, Relaxed);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((line.waiting(), line.burst(1)), (3, 0));
}
