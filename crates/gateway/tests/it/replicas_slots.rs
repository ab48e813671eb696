//! Limits on requests at a time of several gateways, with a real Redis where one is installed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway::Options;
use gateway::config::{Secret, SharedStateOnFailure};
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
    // A timer may fire a moment early.
    let service = SERVICE - Duration::from_millis(5);
    let mut most = 0;
    for (at, start) in starts.iter().enumerate() {
        let first = starts.partition_point(|other| *other + service <= *start);
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

#[tokio::test]
async fn requests_at_a_time_hold_for_gateways_together_and_none_fails_while_redis_is_away() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let (worker, starts) = slow_worker().await;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        let gateway = start_with(Options {
            max_concurrent_requests: SLOTS as i32,
            queue_size: 1000,
            ..sharing(&worker, redis.url())
        });
        gateways.push(gateway.await);
    }
    for gateway in &gateways {
        until(|| async { limits(gateway).await["gateways"] == 3 }).await;
    }
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
    let (most, mean) = at_a_time(&starts, Instant::now() - Duration::from_secs(4));
    assert!(most <= SLOTS && mean > 0.9 * SLOTS as f64, "{most}, {mean}");
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
    for fault in ["frozen", "killed"] {
        if fault == "frozen" {
            redis.signal(Signal::STOP);
        } else {
            redis.kill();
        }
        for gateway in &gateways {
            are(gateway, "on_failure").await;
        }
        let apart = Instant::now() + Duration::from_millis(500);
        sleep(Duration::from_secs(4)).await;
        let (most, mean) = at_a_time(&starts, apart);
        assert!(
            most <= SLOTS && mean > 0.85 * SLOTS as f64,
            "{fault}: {most}, {mean}"
        );
        if fault == "frozen" {
            redis.signal(Signal::CONT);
        } else {
            redis.restart();
        }
        let back = Instant::now();
        for gateway in &gateways {
            are(gateway, "shared").await;
        }
        sleep(Duration::from_secs(3)).await;
        let (most, mean) = at_a_time(&starts, back);
        assert!(
            most <= SLOTS && mean > 0.85 * SLOTS as f64,
            "{fault}, back: {most}, {mean}"
        );
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
