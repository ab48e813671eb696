//! Data-parallel ranks: each is routed to on its own, under one worker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gateway::Options;
use serde_json::{Value, json as value};

use crate::support::{
    Received, Running, Step, Worker, bare, get, json, ok, options, post, posting, raw, start_with,
    until,
};

/// A worker that reports this, and answers requests by a script.
async fn reporting(
    info: Value,
    script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
) -> Worker {
    Worker::listening(0, move |request| match request.path() {
        "/health" | "/abort_request" => json(200, ""),
        "/server_info" => json(200, &info.to_string()),
        "/model_info" => json(200, "{}"),
        "/v1/models" | "/ready" => json(404, "{}"),
        _ => script(request),
    })
    .await
}

fn info(ranks: usize) -> Value {
    value!({"served_model_name": "m", "dp_size": ranks, "version": "0.5.23"})
}

async fn ranked(ranks: usize) -> Worker {
    reporting(info(ranks), |_| ok()).await
}

fn by_rank(workers: &[&Worker]) -> Options {
    Options {
        dp_aware: true,
        ..options(workers)
    }
}

fn asked(worker: &Worker) -> Vec<Value> {
    let received = worker.received();
    let bodies = received
        .iter()
        .filter(|it| it.path() != "/abort_request")
        .map(|it| serde_json::from_slice(&it.body).unwrap());
    bodies.collect()
}

fn ranks_of(bodies: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for body in bodies {
        *counts
            .entry(body["routed_dp_rank"].to_string())
            .or_default() += 1;
    }
    counts
}

async fn has_ranks(gateway: &Running, ranks: usize) {
    let shown = || async { get(gateway, "/workers").await.json()["workers"][0]["ranks"].clone() };
    until(|| async { shown().await.as_array().map(Vec::len) == Some(ranks) }).await;
}

#[tokio::test]
async fn each_rank_gets_its_share_and_its_number() {
    let worker = ranked(4).await;
    let gateway = start_with(by_rank(&[])).await;
    crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    has_ranks(&gateway, 4).await;
    gateway.has_ready(4).await;
    for _ in 0..40 {
        let sent = r#"{"text":"x","data_parallel_rank":3}"#;
        assert_eq!(post(&gateway, "/generate", sent).await.status, 200);
    }
    let asked = asked(&worker);
    let counts = ranks_of(&asked);
    assert_eq!(counts.len(), 4);
    assert!(
        counts.values().all(|count| (9..=11).contains(count)),
        "{counts:?}"
    );
    assert!(
        asked
            .iter()
            .all(|body| body.get("data_parallel_rank").is_none())
    );
    let listed = get(&gateway, "/workers").await.json();
    assert_eq!(
        (&listed["total"], &listed["workers"][0]["dp_size"]),
        (&value!(1), &value!(4))
    );
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn older_engine_gets_the_rank_under_both_names() {
    let old = value!({"served_model_name": "m", "dp_size": 2, "version": "0.4.6.post5"});
    let worker = reporting(old, |_| ok()).await;
    let gateway = start_with(by_rank(&[])).await;
    crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    gateway.has_ready(2).await;
    post(&gateway, "/v1/chat/completions", r#"{"messages":[]}"#).await;
    let body = &asked(&worker)[0];
    assert!(body["routed_dp_rank"].is_u64());
    assert_eq!(body["routed_dp_rank"], body["data_parallel_rank"]);
}

#[tokio::test]
async fn without_the_option_and_with_one_rank_a_worker_stays_one() {
    let (four, one) = (ranked(4).await, ranked(1).await);
    for (options, worker) in [(options(&[&four]), &four), (by_rank(&[&one]), &one)] {
        let gateway = start_with(options).await;
        let sent = r#"{"text":"x","routed_dp_rank":0}"#;
        post(&gateway, "/generate", sent).await;
        assert_eq!(worker.received()[0].body, sent.as_bytes());
        assert!(
            get(&gateway, "/workers").await.json()["workers"][0]
                .get("ranks")
                .is_none()
        );
    }
}

#[tokio::test]
async fn rank_that_fails_is_avoided_and_its_peers_serve() {
    let worker = reporting(info(3), |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        if body["routed_dp_rank"] == 1 {
            json(500, "{}")
        } else {
            ok()
        }
    })
    .await;
    let mut options = by_rank(&[]);
    (
        options.cb_failure_threshold,
        options.retry_initial_backoff_ms,
    ) = (2, 1);
    let gateway = start_with(options).await;
    crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    gateway.has_ready(3).await;
    for _ in 0..12 {
        assert_eq!(
            post(&gateway, "/generate", r#"{"text":"x"}"#).await.status,
            200
        );
    }
    assert_eq!(ranks_of(&asked(&worker))["1"], 2);
    let ranks = get(&gateway, "/workers").await.json()["workers"][0]["ranks"].clone();
    let circuits: Vec<_> = ranks
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["circuit_breaker"].clone())
        .collect();
    assert_eq!(circuits, ["closed", "open", "closed"]);
    let metrics = gateway.metrics().await;
    assert!(
        metrics.contains(&format!("worker=\"{}@1\"", worker.url())),
        "{metrics}"
    );
}

#[tokio::test]
async fn client_may_name_a_rank_or_all_ranks_of_a_worker() {
    let (one, other) = (ranked(2).await, ranked(2).await);
    let gateway = start_with(by_rank(&[])).await;
    for worker in [&one, &other] {
        crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    }
    gateway.has_ready(4).await;
    for target in [format!("{}@1", other.url()), one.url()] {
        let line = format!("x-smg-target-worker: {target}\r\n");
        for _ in 0..6 {
            let request = posting("/generate", &line, r#"{"text":"x"}"#);
            assert_eq!(raw(&gateway, &request).await.status, 200);
        }
    }
    assert_eq!(
        ranks_of(&asked(&other)),
        BTreeMap::from([("1".to_owned(), 6)])
    );
    assert_eq!(ranks_of(&asked(&one)).len(), 2);
}

#[tokio::test]
async fn control_calls_reach_a_worker_of_several_ranks_once() {
    let worker = ranked(3).await;
    let gateway = start_with(by_rank(&[])).await;
    crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    gateway.has_ready(3).await;
    post(&gateway, "/flush_cache", "").await;
    post(&gateway, "/pause_generation", "{}").await;
    let paths: Vec<_> = worker
        .received()
        .iter()
        .map(|it| it.path().to_owned())
        .collect();
    assert_eq!(paths, ["/flush_cache", "/pause_generation"]);
}

#[tokio::test]
async fn restarted_worker_with_fewer_or_more_ranks_has_those() {
    let ranks = Arc::new(AtomicUsize::new(3));
    let (reported, health) = (Arc::clone(&ranks), Arc::new(AtomicUsize::new(200)));
    let state = Arc::clone(&health);
    let first = ranked(1).await;
    let worker = Worker::listening(0, move |request| match request.path() {
        "/health" => json(state.load(Ordering::SeqCst) as u16, ""),
        "/server_info" => json(200, &info(reported.load(Ordering::SeqCst)).to_string()),
        "/model_info" => json(200, "{}"),
        "/v1/models" | "/ready" => json(404, "{}"),
        _ => ok(),
    })
    .await;
    let mut options = by_rank(&[]);
    (
        options.health_check_interval_secs,
        options.health_failure_threshold,
    ) = (1, 1);
    let gateway = start_with(options).await;
    // A slot before that of the first rank is free later.
    let id = crate::support::add(&gateway, &value!({"url": first.url()})).await;
    gateway.has_ready(1).await;
    crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    gateway.has_ready(4).await;
    bare(&gateway, &format!("DELETE /workers/{id}")).await;
    gateway.has_ready(3).await;
    for next in [4, 2, 1, 3] {
        health.store(503, Ordering::SeqCst);
        until(|| async { get(&gateway, "/readiness").await.status == 503 }).await;
        ranks.store(next, Ordering::SeqCst);
        health.store(200, Ordering::SeqCst);
        gateway.has_ready(next).await;
        let shown = get(&gateway, "/workers").await.json()["workers"].clone();
        assert_eq!(shown.as_array().map(Vec::len), Some(1));
        let numbers: Vec<_> = shown[0]["ranks"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| it["dp_rank"].as_u64().unwrap())
            .collect();
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        let expected: Vec<u64> = if next > 1 {
            (0..next as u64).collect()
        } else {
            vec![]
        };
        assert_eq!(sorted, expected);
    }
}

#[tokio::test]
async fn worker_leaves_with_all_its_ranks() {
    let worker = ranked(3).await;
    let gateway = start_with(by_rank(&[])).await;
    let id = crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    gateway.has_ready(3).await;
    bare(&gateway, &format!("DELETE /workers/{id}")).await;
    until(|| async { get(&gateway, "/workers").await.json()["total"] == 0 }).await;
    until(|| async { get(&gateway, "/readiness").await.status == 503 }).await;
    assert!(!gateway.metrics().await.contains(&worker.url()));
    crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    gateway.has_ready(3).await;
}

#[tokio::test]
async fn pair_of_ranks_meets_in_a_room_of_the_prefill_rank() {
    let role = |role: &str, ranks: usize| {
        let mut info = info(ranks);
        info["disaggregation_mode"] = role.into();
        info
    };
    let prefill = reporting(role("prefill", 3), |_| ok()).await;
    let decode = reporting(role("decode", 2), |_| ok()).await;
    let gateway = start_with(by_rank(&[])).await;
    for worker in [&prefill, &decode] {
        crate::support::add(&gateway, &value!({"url": worker.url()})).await;
    }
    gateway.has_ready(5).await;
    for _ in 0..12 {
        assert_eq!(
            post(&gateway, "/generate", r#"{"text":["x","y"]}"#)
                .await
                .status,
            200
        );
    }
    let (at_prefill, at_decode) = (asked(&prefill), asked(&decode));
    assert_eq!(ranks_of(&at_prefill).len(), 3);
    assert_eq!(ranks_of(&at_decode).len(), 2);
    for (one, other) in at_prefill.iter().zip(&at_decode) {
        let room = one["bootstrap_room"].as_u64().unwrap();
        assert_eq!(room % 3, one["routed_dp_rank"].as_u64().unwrap());
        assert_eq!(other["bootstrap_room"], one["bootstrap_room"]);
        for body in [one, other] {
            assert_eq!(body["disagg_prefill_dp_rank"], one["routed_dp_rank"]);
        }
    }
}
