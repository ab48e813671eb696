//! Workers are asked for their loads: the traffic of other gateways counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use routing::PolicyKind;
use serde_json::{Value, json as value};
use sim::{SimOptions, SimWorker};

use crate::support::{Running, Worker, json, ok, options, post, start_with, until};

/// A worker that reports so many queued tokens; from `SILENT` on nothing.
async fn reporting(queued: &Arc<AtomicU64>) -> Worker {
    let queued = Arc::clone(queued);
    Worker::scripted(move |request| {
        if !request.path().starts_with("/v1/loads") {
            return ok();
        }
        match queued.load(SeqCst) {
            SILENT.. => json(500, "{}"),
            queued => json(
                200,
                &value!({"loads": [{"dp_rank": 0, "num_running_reqs": 0, "num_waiting_reqs": 0,
                    "num_waiting_uncached_tokens": queued, "num_used_tokens": 0}]})
                .to_string(),
            ),
        }
    })
    .await
}

const SILENT: u64 = 1_000_000;

/// What `/route/explain` says of a worker, by its URL.
pub(super) async fn explained(gateway: &Running, worker: &str) -> Value {
    let page = post(gateway, "/route/explain", r#"{"text":"hello"}"#).await;
    let page = page.json();
    let candidates = page["candidates"].as_array().unwrap();
    let found = candidates.iter().find(|one| one["worker"] == worker);
    found.unwrap().clone()
}

/// The requests that went to the worker, of twelve.
async fn share(gateway: &Running, worker: &Worker) -> usize {
    worker.forget_received();
    for _ in 0..12 {
        let reply = post(gateway, "/generate", r#"{"text":"hello"}"#).await;
        assert_eq!(reply.status, 200);
    }
    let received = worker.received();
    received
        .iter()
        .filter(|it| it.path() == "/generate")
        .count()
}

#[tokio::test]
async fn traffic_of_others_counts_until_its_worker_has_been_silent() {
    let queued = [
        Arc::new(AtomicU64::new(50_000)),
        Arc::new(AtomicU64::new(0)),
    ];
    let workers = [reporting(&queued[0]).await, reporting(&queued[1]).await];
    let mut options = options(&[&workers[0], &workers[1]]);
    options.policy = PolicyKind::LeastLoad;
    options.load_poll_interval_secs = 1;
    let gateway = start_with(options).await;
    let busy = workers[0].url();
    let reported = async || explained(&gateway, &busy).await["reported"].clone();
    until(|| async { reported().await["queued_tokens"] == 50_000 }).await;
    assert_eq!(share(&gateway, &workers[0]).await, 0);
    let page = gateway.metrics().await;
    let line = format!("smg_worker_reported_queued_tokens{{worker=\"{busy}\"}} 50000");
    assert!(page.contains(&line), "{page}");
    queued[0].store(SILENT, SeqCst);
    until(|| async { reported().await.is_null() }).await;
    assert!((1..12).contains(&share(&gateway, &workers[0]).await));
    // It did not count as a failure of the worker.
    until(|| async { explained(&gateway, &busy).await["cost"] == 0.0 }).await;
    let page = gateway.metrics().await;
    assert!(page.contains("smg_worker_load_reports_total{result=\"failure\",source=\"poll\"}"));
}

#[tokio::test]
async fn workers_are_not_asked_unless_an_option_says_so() {
    let queued = Arc::new(AtomicU64::new(9));
    let worker = reporting(&queued).await;
    let gateway = start_with(options(&[&worker])).await;
    post(&gateway, "/generate", r#"{"text":"hello"}"#).await;
    let asked = worker.received();
    assert!(!asked.iter().any(|it| it.path().starts_with("/v1/loads")));
    assert!(explained(&gateway, &worker.url()).await["reported"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_another_gateway_are_seen_and_prefill_is_timed() {
    let sim = || {
        SimWorker::start(SimOptions {
            prefill_tokens_per_sec: 20_000.0,
            decode_step_base_ms: 20.0,
            ..SimOptions::default()
        })
        .unwrap()
    };
    let workers = [sim(), sim()];
    let mut options = options(&[]);
    options.worker_urls = workers.iter().map(SimWorker::url).collect();
    options.policy = PolicyKind::LeastLoad;
    options.load_poll_interval_secs = 1;
    let gateway = start_with(options).await;
    let busy = workers[0].url();
    let reported = async || explained(&gateway, &busy).await["reported"].clone();
    until(|| async { reported().await["running"] == 0 }).await;
    // What another gateway sends there: streams of some seconds.
    let prompt = "some words of it ".repeat(400);
    let body = value!({"text": prompt, "sampling_params": {"max_new_tokens": 200}}).to_string();
    let addr = workers[0].addr();
    let others: Vec<_> = (0..6)
        .map(|_| {
            let body = body.clone();
            tokio::spawn(async move { post(addr, "/generate", &body).await.status })
        })
        .collect();
    until(|| async { reported().await["running"] == 6 }).await;
    let before = workers[0].stats();
    for _ in 0..8 {
        let short = r#"{"text":"hello","sampling_params":{"max_new_tokens":1}}"#;
        assert_eq!(post(&gateway, "/generate", short).await.status, 200);
    }
    assert_eq!(workers[0].stats().requests, before.requests);
    let speed = reported().await["prefill_tokens_per_second"].clone();
    let speed = speed.as_f64().unwrap();
    assert!((19_000.0..21_000.0).contains(&speed), "{speed}");
    for other in others {
        assert_eq!(other.await.unwrap(), 200);
    }
}
