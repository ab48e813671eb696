//! Routing keys of several gateways, with a real Redis where one is installed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use gateway::Options;
use gateway::config::Secret;
use routing::PolicyKind;
use routing::policy::AssignmentMode;
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::sleep;

use crate::replicas::Redis;
use crate::support::{
    Running, Worker, bare, get, json as reply, options, posting, raw, start_with, until, until_gone,
};

const CHAT: &str = "/v1/chat/completions";

fn sharing(workers: &[Worker], url: String, assignment_mode: AssignmentMode) -> Options {
    let workers: Vec<&Worker> = workers.iter().collect();
    Options {
        policy: PolicyKind::Manual,
        assignment_mode,
        shared_state: Some(Secret::from(url)),
        ..options(&workers)
    }
}

/// Workers that answer with their number, after a moment.
async fn numbered(count: usize) -> Vec<Worker> {
    let mut workers = Vec::new();
    for number in 0..count {
        let answer = format!("{{\"worker\":{number}}}");
        workers.push(Worker::scripted(move |_| reply(200, &answer)).await);
    }
    workers
}

async fn keys(gateway: &Running) -> Value {
    let shown = get(gateway, "/debug/replicas").await.json();
    shown["routing_keys"].clone()
}

/// Waits until keys are in a state, and all has been read and claimed.
async fn are(gateway: &Running, state: &str) {
    until(|| async {
        let shown = keys(gateway).await;
        let done = shown["warmed_up"] == true && shown["unclaimed"] == 0;
        shown["state"] == state && (done || state != "shared")
    })
    .await;
}

/// The number of the worker that serves a session.
async fn serve(gateway: &Running, session: usize) -> Option<u64> {
    let key = format!("x-smg-routing-key: session-{session}\r\n");
    let reply = raw(gateway, &posting(CHAT, &key, "{}")).await;
    (reply.status == 200).then(|| reply.json()["worker"].as_u64())?
}

async fn served(gateway: &Running, sessions: std::ops::Range<usize>) -> Vec<Option<u64>> {
    join_all(sessions.map(|session| serve(gateway, session))).await
}

/// All names and values in the server, and how long each is kept.
async fn stored(redis: &Redis) -> BTreeMap<String, (String, i64)> {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut keys = redis::cmd("KEYS");
    let names: Vec<String> = keys
        .arg("smg:3:key:*")
        .query_async(&mut connection)
        .await
        .unwrap();
    let mut all = BTreeMap::new();
    for name in names {
        let mut value = redis::cmd("GET");
        let mut left = redis::cmd("PTTL");
        let value: String = value.arg(&name).query_async(&mut connection).await.unwrap();
        let left: i64 = left.arg(&name).query_async(&mut connection).await.unwrap();
        all.insert(name, (value, left));
    }
    all
}

#[tokio::test]
async fn gateways_assign_keys_alike_though_first_requests_race_and_move_them_together() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let workers = numbered(4).await;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        let options = sharing(&workers, redis.url(), AssignmentMode::MinGroup);
        gateways.push(start_with(options).await);
    }
    for gateway in &gateways {
        are(gateway, "shared").await;
    }
    let first = join_all(gateways.iter().map(|gateway| served(gateway, 0..100))).await;
    for gateway in &gateways {
        are(gateway, "shared").await;
    }
    sleep(Duration::from_millis(100)).await;
    let agreed = served(&gateways[0], 0..100).await;
    for (at, gateway) in gateways.iter().enumerate() {
        assert_eq!(served(gateway, 0..100).await, agreed);
        let taken_over = keys(gateway).await["taken_over"].as_u64().unwrap();
        let differ = first[at]
            .iter()
            .zip(&agreed)
            .filter(|(one, all)| one != all);
        assert!(differ.count() as u64 <= taken_over + 100);
    }
    // The first one to ask has decided.
    for session in 0..100 {
        assert!(
            first
                .iter()
                .any(|served| served[session] == agreed[session])
        );
    }
    // No text, and no longer than is needed.
    let all = stored(&redis).await;
    assert_eq!(all.len(), 100);
    for (name, (value, left)) in &all {
        assert!(!format!("{name}{value}").contains("session"));
        assert_eq!((name.len(), value.len()), ("smg:3:key:".len() + 32, 48));
        assert!((16_100_000..=16_200_000).contains(left), "{left}");
    }

    // One worker goes: its keys move, for all gateways alike.
    for gateway in &gateways {
        let listed = get(gateway, "/workers").await.json();
        let rows = listed["workers"].as_array().unwrap();
        let gone = rows.iter().find(|row| row["url"] == workers[1].url());
        let id = gone.unwrap()["id"].as_str().unwrap().to_owned();
        let deleted = bare(gateway, &format!("DELETE /workers/{id}")).await;
        assert!(deleted.status < 300);
        until_gone(gateway, &id).await;
    }
    let moved = served(&gateways[0], 0..100).await;
    are(&gateways[0], "shared").await;
    sleep(Duration::from_millis(100)).await;
    for gateway in &gateways[1..] {
        assert_eq!(served(gateway, 0..100).await, moved);
    }
    for (before, after) in agreed.iter().zip(&moved) {
        assert!(after.is_some() && *after != Some(1));
        assert!(*before == Some(1) || before == after);
    }
}

#[tokio::test]
async fn keys_outlive_gateways_and_redis_and_no_request_fails_meanwhile() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let workers = numbered(4).await;
    let start = || start_with(sharing(&workers, redis.url(), AssignmentMode::MinLoad));
    let (one, two) = (start().await, start().await);
    are(&one, "shared").await;
    are(&two, "shared").await;
    let agreed = served(&one, 0..60).await;
    are(&one, "shared").await;
    // A new one, and one that was there before, know the same.
    let three = start().await;
    are(&three, "shared").await;
    assert_eq!(served(&three, 0..60).await, agreed);
    drop(three);

    let (stop, failed, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let load = async {
        while !stop.load(Relaxed) {
            let both = join_all([&one, &two].map(|gateway| served(gateway, 0..20))).await;
            let wrong = both.iter().flat_map(|served| served.iter().zip(&agreed));
            failed.fetch_add(wrong.filter(|(is, was)| is != was).count(), Relaxed);
            sent.fetch_add(40, Relaxed);
            sleep(Duration::from_millis(10)).await;
        }
    };
    let faults = async {
        redis.signal(Signal::STOP);
        are(&one, "apart").await;
        are(&two, "apart").await;
        let apart = [served(&one, 100..130).await, served(&two, 100..130).await];
        assert!(apart.iter().flatten().all(Option::is_some));
        redis.signal(Signal::CONT);
        are(&one, "shared").await;
        are(&two, "shared").await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(served(&one, 100..130).await, served(&two, 100..130).await);
        redis.kill();
        are(&one, "apart").await;
        are(&two, "apart").await;
        redis.restart();
        are(&one, "shared").await;
        are(&two, "shared").await;
        stop.store(true, Relaxed);
    };
    tokio::join!(load, faults);
    assert_eq!(failed.load(Relaxed), 0, "of {}", sent.load(Relaxed));
    // The server has lost all, and got it back.
    assert_eq!(stored(&redis).await.len(), 90);
    let four = start_with(sharing(&workers, redis.url(), AssignmentMode::MinLoad)).await;
    are(&four, "shared").await;
    assert_eq!(served(&four, 0..60).await, agreed);
}
