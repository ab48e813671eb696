//! Workers that come up late, go away and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gateway::Gateway;

use crate::support::{Running, Worker, get, json, ok, options, post, start, start_with, until};

#[tokio::test]
async fn the_gateway_listens_before_its_workers_are_up() {
    let placeholder = Worker::doing(ok()).await;
    let port = placeholder.port();
    let options = options(&[&placeholder]);
    drop(placeholder);
    let gateway = Running {
        gateway: Gateway::start(&options).unwrap(),
    };
    assert_eq!(get(&gateway, "/health").await.status, 200);
    assert_eq!(get(&gateway, "/readiness").await.status, 503);
    assert_eq!(get(&gateway, "/v1/models").await.status, 503);
    let workers = get(&gateway, "/workers").await.json();
    assert_eq!(workers["workers"][0]["status"], "pending");
    assert_eq!(workers["workers"][0]["is_healthy"], false);

    let worker = rebind(port).await;
    until(|| async { get(&gateway, "/readiness").await.status == 200 }).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    drop(worker);
}

/// A worker on a port that may still be closing.
async fn rebind(port: u16) -> Worker {
    Worker::listening(port, |_| ok()).await
}

#[tokio::test]
async fn a_worker_that_comes_up_after_the_timeout_is_still_picked_up() {
    let up = Arc::new(AtomicBool::new(false));
    let answers = Arc::clone(&up);
    let worker = Worker::listening(0, move |_| {
        if answers.load(Ordering::SeqCst) {
            ok()
        } else {
            json(503, "{}")
        }
    })
    .await;
    let mut options = options(&[&worker]);
    options.worker_startup_timeout_secs = 1;
    options.health_check_interval_secs = 1;
    let gateway = Running {
        gateway: Gateway::start(&options).unwrap(),
    };
    let status = || async {
        get(&gateway, "/workers").await.json()["workers"][0]["status"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    until(|| async { status().await == "failed" }).await;
    up.store(true, Ordering::SeqCst);
    until(|| async { status().await == "ready" }).await;
}

#[tokio::test]
async fn a_sick_worker_gets_no_requests_until_it_recovers() {
    let sick = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&sick);
    let worker = Worker::listening(0, move |request| {
        let probe = request.path() == "/health";
        if probe && state.load(Ordering::SeqCst) {
            json(500, "{}")
        } else {
            ok()
        }
    })
    .await;
    let other = Worker::doing(ok()).await;
    let mut options = options(&[&worker, &other]);
    options.health_check_interval_secs = 1;
    options.health_failure_threshold = 1;
    options.health_success_threshold = 1;
    let gateway = start_with(options).await;
    let healthy = || async { get(&gateway, "/readiness").await.json()["healthy_workers"].clone() };
    sick.store(true, Ordering::SeqCst);
    until(|| async { healthy().await == 1 }).await;
    let before = worker.received().len();
    for _ in 0..10 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
    assert_eq!(worker.received().len(), before);
    sick.store(false, Ordering::SeqCst);
    until(|| async { healthy().await == 2 }).await;
}

#[tokio::test]
async fn a_probed_worker_is_not_probed_again_when_that_is_disabled() {
    static PROBES: AtomicUsize = AtomicUsize::new(0);
    let worker = Worker::listening(0, |request| {
        if request.path() == "/health" {
            PROBES.fetch_add(1, Ordering::SeqCst);
        }
        if request.path() == "/server_info" {
            json(200, r#"{"model_path":"/m"}"#)
        } else {
            ok()
        }
    })
    .await;
    let mut options = options(&[&worker]);
    options.disable_health_check = true;
    options.health_check_interval_secs = 1;
    let gateway = start_with(options).await;
    let before = PROBES.load(Ordering::SeqCst);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(PROBES.load(Ordering::SeqCst), before);
    assert_eq!(
        get(&gateway, "/v1/models").await.json()["data"][0]["id"],
        "/m"
    );
}

#[tokio::test]
async fn round_robin_spreads_requests_evenly() {
    let workers = [
        Worker::doing(ok()).await,
        Worker::doing(ok()).await,
        Worker::doing(ok()).await,
    ];
    let gateway = start(&[&workers[0], &workers[1], &workers[2]]).await;
    for _ in 0..30 {
        post(&gateway, "/v1/completions", "{}").await;
    }
    for worker in &workers {
        assert_eq!(worker.received().len(), 10);
    }
}

#[tokio::test]
async fn the_list_of_workers_shows_their_properties() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let list = get(&gateway, "/workers").await.json();
    assert_eq!(
        (&list["total"], &list["stats"]["regular_count"]),
        (&1.into(), &1.into())
    );
    let one = &list["workers"][0];
    assert_eq!(one["url"], worker.url());
    assert_eq!(one["model_id"], "test-model");
    assert_eq!(one["labels"]["tp_size"], "1");
    assert_eq!(
        (&one["status"], &one["is_healthy"]),
        (&"ready".into(), &true.into())
    );
    assert_eq!(one["id"].as_str().unwrap().len(), 36);
}

#[tokio::test]
async fn a_suspected_worker_is_probed_at_once() {
    let (gone, other) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let (url, gateway) = (gone.url(), start(&[&gone, &other]).await);
    drop(gone);
    assert!(gateway.gateway.suspect(&url) && !gateway.gateway.suspect("http://unknown:1"));
    // Without a single request having met it.
    gateway.has_ready(1).await;
    assert!(gateway.gateway.suspect(&other.url()));
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
}
