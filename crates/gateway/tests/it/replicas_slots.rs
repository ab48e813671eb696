//! Limits on requests at a time of several gateways, with a real Redis where one is installed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway::Options;
use gateway::config::{Secret, SharedStateOnFailure};
use routing::PolicyKind;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::replicas::Redis;
use crate::support::{
    Client, Running, Step, WatchedFile, Worker, get, json as reply, options, posting, start_with,
    until,
};

const CHAT: &str = "/v1/chat/completions";
/// How long a request takes at the worker.
const SERVICE: Duration = Duration::from_millis(200);
/// It is no less, although a timer may fire a moment early.
const LEAST_SERVICE: Duration = Duration::from_millis(195);
/// Requests at a time of all gateways.
const SLOTS: usize = 60;

/// When requests came to the worker.
type Starts = Arc<Mutex<Vec<Instant>>>;

async fn slow_worker() -> (Worker, Starts) {
    let starts = Starts::default();
    let noted = Arc::clone(&starts);
    let worker = Worker::scripted(move |_| {
        noted.lock().unwrap().push(Instant::now());
        let mut steps = vec![Step::Pause(SERVICE)];
        steps.extend(reply(200, "{}"));
        steps
    });
    (worker.await, starts)
}

/// The most requests that were at the worker at a time since then, and how many in the mean.
fn at_a_time(starts: &Starts, since: Instant) -> (usize, f64) {
    let starts = starts.lock().unwrap();
    let mut starts: Vec<_> = starts.iter().filter(|it| **it >= since).copied().collect();
    starts.sort_unstable();
    let mut most = 0;
    for (at, start) in starts.iter().enumerate() {
        let first = starts.partition_point(|other| *other + LEAST_SERVICE <= *start);
        most = most.max(at + 1 - first);
    }
    let mean = starts.len() as f64 * SERVICE.as_secs_f64() / since.elapsed().as_secs_f64();
    (most, mean)
}

/// A client that sends one request after the other; counts those that are served, refused and failed.
fn client(to: SocketAddr, head: String, counts: &Arc<[AtomicUsize; 3]>) -> JoinHandle<()> {
    let counts = Arc::clone(counts);
    tokio::spawn(async move {
        let mut client = Client::to(to).await;
        loop {
            client.send(&posting(CHAT, &head, "{}")).await;
            let status = client.try_reply().await.map(|reply| reply.status);
            let [served, refused, failed] = &*counts;
            match status {
                Some(200) => served.fetch_add(1, Relaxed),
                Some(429) => {
                    sleep(Duration::from_millis(5)).await;
                    refused.fetch_add(1, Relaxed)
                }
                _ => {
                    client = Client::to(to).await;
                    failed.fetch_add(1, Relaxed)
                }
            };
        }
    })
}

fn sharing(worker: &Worker, url: String) -> Options {
    Options {
        shared_state: Some(Secret::from(url)),
        shared_state_on_failure: SharedStateOnFailure::Local,
        disable_retries: true,
        ..options(&[worker])
    }
}

async fn limits(gateway: &Running) -> Value {
    let shown = get(gateway, "/debug/replicas").await.json();
    shown["rate_limits"].clone()
}

async fn are(gateway: &Running, state: &str) {
    until(|| async { limits(gateway).await["state"] == state }).await;
}

/// What happens to the server.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Frozen,
    Killed,
}

impl Fault {
    fn begin(self, redis: &mut Redis) {
        match self {
            Self::Frozen => redis.signal(Signal::STOP),
            Self::Killed => redis.kill(),
        }
    }

    fn end(self, redis: &mut Redis) {
        match self {
            Self::Frozen => redis.signal(Signal::CONT),
            Self::Killed => redis.restart(),
        }
    }
}

/// No more were at the worker at a time than there are slots, and most of these were in use.
fn check(starts: &Starts, since: Instant, share: f64) {
    let (most, mean) = at_a_time(starts, since);
    let least = share * SLOTS as f64;
    assert!(most <= SLOTS && mean > least, "{most}, {mean}");
}

/// Three gateways that share the slots.
async fn capped(worker: &Worker, redis: &Redis) -> Vec<Running> {
    let mut gateways = Vec::new();
    for _ in 0..3 {
        let gateway = start_with(Options {
            max_concurrent_requests: 60,
            queue_size: 1000,
            ..sharing(worker, redis.url())
        });
        gateways.push(gateway.await);
    }
    for gateway in &gateways {
        until(|| async { limits(gateway).await["gateways"] == 3 }).await;
    }
    gateways
}

#[tokio::test]
async fn requests_at_a_time_hold_for_gateways_together_and_none_fails_while_redis_is_away() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let (worker, starts) = slow_worker().await;
    let gateways = capped(&worker, &redis).await;
    let counts = Arc::default();
    let begin = |at: usize, clients: usize| -> Vec<_> {
        let to = gateways[at].gateway.addr();
        (0..clients)
            .map(|_| client(to, String::new(), &counts))
            .collect()
    };
    // Most of the requests come to one of them.
    let mut load = begin(0, 70);
    load.extend(begin(1, 10));
    load.extend(begin(2, 10));
    sleep(Duration::from_secs(10)).await;
    check(&starts, Instant::now() - Duration::from_secs(4), 0.9);
    let row = &limits(&gateways[0]).await["slots"][0];
    assert_eq!(
        (row["name"].as_str(), row["short"].as_bool()),
        (Some("max_concurrent_requests"), Some(true))
    );
    // Others want no more than ten each.
    assert!(row["allowed"].as_u64().unwrap() >= 36, "{row}");

    // Enough of them everywhere, so that each uses its part.
    load.extend(begin(1, 40));
    load.extend(begin(2, 40));
    sleep(Duration::from_secs(2)).await;
    for fault in [Fault::Frozen, Fault::Killed] {
        fault.begin(&mut redis);
        for gateway in &gateways {
            are(gateway, "on_failure").await;
        }
        let apart = Instant::now() + Duration::from_millis(500);
        sleep(Duration::from_secs(4)).await;
        check(&starts, apart, 0.85);
        fault.end(&mut redis);
        let back = Instant::now();
        for gateway in &gateways {
            are(gateway, "shared").await;
        }
        sleep(Duration::from_secs(3)).await;
        check(&starts, back, 0.85);
    }
    load.iter().for_each(JoinHandle::abort);
    let [served, refused, failed] = &*counts;
    let (refused, failed) = (refused.load(Relaxed), failed.load(Relaxed));
    assert_eq!((refused, failed), (0, 0), "of {}", served.load(Relaxed));
}

#[tokio::test]
async fn requests_at_a_time_of_a_key_hold_for_gateways_together() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let (worker, starts) = slow_worker().await;
    let keys = json!([{"name": "some", "key": "k-some", "max_parallel_requests": 12}]);
    let file = WatchedFile::new("shared-slots", "keys.json", &keys.to_string());
    let mut gateways = Vec::new();
    for _ in 0..3 {
        let gateway = start_with(Options {
            api_keys_file: Some(file.path()),
            ..sharing(&worker, redis.url())
        });
        gateways.push(gateway.await);
    }
    for gateway in &gateways {
        until(|| async {
            let page = gateway.metrics().await;
            page.contains("smg_shared_slots{limit=\"max_parallel_requests\"")
        })
        .await;
    }
    let counts = Arc::default();
    let begin = |at: usize, clients: usize| -> Vec<_> {
        let (to, head) = (
            gateways[at].gateway.addr(),
            "authorization: Bearer k-some\r\n",
        );
        (0..clients)
            .map(|_| client(to, head.to_owned(), &counts))
            .collect()
    };
    let mut load = begin(0, 20);
    load.extend(begin(1, 3));
    // At first each gateway has no more than its part.
    sleep(Duration::from_secs(13)).await;
    let (most, mean) = at_a_time(&starts, Instant::now() - Duration::from_secs(4));
    let mut shown = Vec::new();
    for gateway in &gateways {
        let page = gateway.metrics().await;
        let lines = page
            .lines()
            .filter(|it| it.starts_with("smg_shared_slots{"));
        shown.extend(lines.map(str::to_owned));
    }
    let [served, refused, _] = &*counts;
    assert!(
        most <= 12 && mean > 11.0,
        "{most}, {mean}: {shown:?}, {served:?}, {refused:?}"
    );
    load.iter().for_each(JoinHandle::abort);
    let [served, refused, failed] = &*counts;
    assert!(refused.load(Relaxed) > 100 && served.load(Relaxed) > 100);
    assert_eq!(failed.load(Relaxed), 0);
}

#[tokio::test]
async fn requests_at_a_worker_hold_for_gateways_together() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let (one, starts) = slow_worker().await;
    let (two, other_starts) = slow_worker().await;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        let gateway = start_with(Options {
            max_requests_per_worker: 24,
            queue_size: 1000,
            policy: PolicyKind::LeastLoad,
            worker_urls: vec![one.url(), two.url()],
            ..sharing(&one, redis.url())
        });
        gateways.push(gateway.await);
    }
    for gateway in &gateways {
        until(|| async {
            let shown = limits(gateway).await;
            // Two workers, and the queues for workers and for pairs.
            shown["gateways"] == 3 && shown["count"] == 4
        })
        .await;
    }
    let counts = Arc::default();
    let mut load = Vec::new();
    for (gateway, clients) in gateways.iter().zip([50, 10, 10]) {
        let to = gateway.gateway.addr();
        load.extend((0..clients).map(|_| client(to, String::new(), &counts)));
    }
    let check = |since: Instant, share: f64| {
        for starts in [&starts, &other_starts] {
            let (most, mean) = at_a_time(starts, since);
            assert!(most <= 24 && mean > share * 24.0, "{most}, {mean}");
        }
    };
    sleep(Duration::from_secs(13)).await;
    check(Instant::now() - Duration::from_secs(4), 0.85);
    redis.kill();
    for gateway in &gateways {
        are(gateway, "on_failure").await;
    }
    let apart = Instant::now() + Duration::from_millis(500);
    sleep(Duration::from_secs(3)).await;
    // Two of them use no more than five, of eight, at each.
    check(apart, 0.6);
    redis.restart();
    for gateway in &gateways {
        are(gateway, "shared").await;
    }
    load.iter().for_each(JoinHandle::abort);
    let [_, refused, failed] = &*counts;
    assert_eq!((refused.load(Relaxed), failed.load(Relaxed)), (0, 0));
}
