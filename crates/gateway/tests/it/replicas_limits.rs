//! Rate limits of several gateways: without their server, and with a real one where one is installed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use gateway::Options;
use gateway::config::{Secret, SharedStateOnFailure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep};

use crate::replicas::Redis;
use crate::support::{
    Client, Reply, Running, WatchedFile, Worker, get, json as reply, options, posting, raw,
    start_with, until,
};

const CHAT: &str = "/v1/chat/completions";
/// Requests per second of all gateways.
const RATE: i32 = 100;

fn sharing(worker: &Worker, url: String, on_failure: SharedStateOnFailure) -> Options {
    Options {
        shared_state: Some(Secret::from(url)),
        shared_state_on_failure: on_failure,
        queue_size: 0,
        disable_retries: true,
        ..options(&[worker])
    }
}

async fn answering() -> Worker {
    let usage = r#"{"usage":{"prompt_tokens":60,"completion_tokens":40}}"#;
    Worker::scripted(move |_| reply(200, usage)).await
}

async fn limits(gateway: &Running) -> Value {
    let shown = get(gateway, "/debug/replicas").await.json();
    shown["rate_limits"].clone()
}

/// Waits until limits are in a state, for so many gateways.
async fn are(gateway: &Running, state: &str, gateways: u64) {
    until(|| async {
        let shown = limits(gateway).await;
        shown["state"] == state && shown["gateways"] == gateways
    })
    .await;
}

/// Requests with a pause in between until the task is ended; counts those that are let in.
fn requests(to: SocketAddr, pause: Duration, passed: &Arc<AtomicUsize>) -> JoinHandle<()> {
    let passed = Arc::clone(passed);
    tokio::spawn(async move {
        let mut ticks = interval(pause);
        let mut client = Client::to(to).await;
        loop {
            ticks.tick().await;
            client.send(&posting(CHAT, "", "{}")).await;
            match client.try_reply().await.map(|reply| reply.status) {
                Some(200) => passed.fetch_add(1, Relaxed),
                Some(429) => 0,
                None => {
                    client = Client::to(to).await;
                    0
                }
                other => unreachable!("{other:?}"),
            };
        }
    })
}

/// Requests let in per second.
async fn rate(passed: &AtomicUsize, seconds: f64) -> f64 {
    let (began, before) = (Instant::now(), passed.load(Relaxed));
    sleep(Duration::from_secs_f64(seconds)).await;
    (passed.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
}

/// Requests let in per second are within so much of the limit, over so long. A machine that stands
/// still for a moment shifts some of them to the next while: the best of three counts.
async fn keeps_limit(passed: &AtomicUsize, seconds: f64, tolerance: f64) {
    let off = |found: f64| (found / f64::from(RATE) - 1.0).abs();
    let mut seen = vec![rate(passed, seconds).await];
    while seen.len() < 3 && seen.last().is_none_or(|found| off(*found) > tolerance) {
        seen.push(rate(passed, seconds).await);
    }
    let held = seen.last().is_some_and(|found| off(*found) <= tolerance);
    assert!(held, "{seen:?} a second, not {RATE}");
}

async fn ask(gateway: &Running, key: &str) -> Reply {
    let bearer = format!("authorization: Bearer {key}\r\n");
    raw(gateway, &posting(CHAT, &bearer, "{}")).await
}

#[tokio::test]
async fn gateway_that_has_never_reached_its_server_limits_as_the_option_says() {
    let worker = answering().await;
    for (on_failure, status) in [
        (SharedStateOnFailure::Closed, 429),
        (SharedStateOnFailure::Local, 200),
        (SharedStateOnFailure::Open, 200),
    ] {
        let gateway = start_with(Options {
            rate_limit_tokens_per_second: Some(RATE),
            ..sharing(&worker, "redis://127.0.0.1:1/0".to_owned(), on_failure)
        })
        .await;
        until(|| async { limits(&gateway).await["state"] == "on_failure" }).await;
        let reply = raw(&gateway, &posting(CHAT, "", "{}")).await;
        assert_eq!(reply.status, status, "{on_failure:?}");
        if status == 429 {
            assert_eq!(reply.header("retry-after"), "1");
        }
        let page = gateway.metrics().await;
        assert!(page.contains("smg_shared_limits_on_failure 1\n"), "{page}");
    }
}

#[tokio::test]
async fn limits_per_second_hold_for_three_gateways_together_and_for_each_in_part_without_redis() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let worker = answering().await;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        let options = sharing(&worker, redis.url(), SharedStateOnFailure::Local);
        let gateway = start_with(Options {
            rate_limit_tokens_per_second: Some(RATE),
            ..options
        });
        gateways.push(gateway.await);
    }
    for gateway in &gateways {
        are(gateway, "shared", 3).await;
    }
    let passed = Arc::new(AtomicUsize::new(0));
    let begin = |at: usize, millis: u64| {
        let to = gateways[at].gateway.addr();
        requests(to, Duration::from_millis(millis), &passed)
    };
    // Most of the requests come to one of them.
    let mut load = vec![begin(0, 4), begin(1, 20), begin(2, 25)];
    sleep(Duration::from_secs(2)).await;
    keeps_limit(&passed, 8.0, 0.02).await;

    // Enough of them everywhere, so that each uses its part.
    load.extend([begin(1, 10), begin(2, 10)]);
    redis.signal(Signal::STOP);
    for gateway in &gateways {
        are(gateway, "on_failure", 3).await;
    }
    sleep(Duration::from_secs(1)).await;
    keeps_limit(&passed, 4.0, 0.06).await;

    redis.signal(Signal::CONT);
    for gateway in &gateways {
        are(gateway, "shared", 3).await;
    }
    sleep(Duration::from_secs(2)).await;
    keeps_limit(&passed, 5.0, 0.03).await;
    load.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn limits_of_a_key_hold_for_gateways_together() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let worker = answering().await;
    let keys = json!([
        {"name": "rpm", "key": "k-rpm", "rpm_limit": 60},
        {"name": "tpm", "key": "k-tpm", "tpm_limit": 6000},
        {"name": "few", "key": "k-few", "rpm_limit": 1},
    ]);
    let file = WatchedFile::new("shared-limits", "keys.json", &keys.to_string());
    let mut gateways = Vec::new();
    for _ in 0..3 {
        let gateway = start_with(Options {
            api_keys_file: Some(file.path()),
            ..sharing(&worker, redis.url(), SharedStateOnFailure::Closed)
        });
        gateways.push(gateway.await);
    }
    for gateway in &gateways {
        until(|| async {
            // Clients' keys open no page of the control plane.
            let page = gateway.metrics().await;
            page.contains("smg_shared_limits 3\n") && page.contains("on_failure 0\n")
        })
        .await;
    }
    sleep(Duration::from_secs(2)).await;
    // A minute's worth is 60 requests, or 6000 tokens of which each request takes 100. At first half
    // of it is there at once.
    for (key, at_once) in [("k-rpm", 60), ("k-tpm", 60), ("k-few", 1)] {
        let (began, mut passed, mut refused) = (Instant::now(), 0, 0);
        while began.elapsed() < Duration::from_secs(4) {
            for gateway in &gateways {
                let reply = ask(gateway, key).await;
                match reply.status {
                    200 => passed += 1,
                    429 => {
                        assert!(reply.header("retry-after").parse::<u64>().unwrap() >= 1);
                        refused += 1;
                    }
                    other => unreachable!("{other}"),
                }
            }
            sleep(Duration::from_millis(25)).await;
        }
        let since = began.elapsed().as_secs() as usize + 1;
        let most = if at_once == 1 { 1 } else { at_once + since };
        // What is counted after a reply may let one more in at each gateway.
        let least = (at_once / 2).max(1);
        assert!((least..=most + 3).contains(&passed), "{key}: {passed}");
        assert!(refused > 0, "{key}");
    }
}
