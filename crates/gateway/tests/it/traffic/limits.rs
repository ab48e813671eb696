//! Requests that are admitted, that wait, that are refused; and workers that leave.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{
    Client, Running, Step, Worker, get, ok, options, post, raw, start, start_with, until,
};

async fn asking(gateway: &Running) -> Client {
    Client::asking(gateway, "").await
}

async fn queued(gateway: &Running, key: &str) -> u64 {
    get(gateway, "/debug/limits").await.json()[key]
        .as_u64()
        .unwrap()
}

/// A worker that answers when the test says so.
async fn slow() -> Worker {
    Worker::doing([vec![Step::Wait], ok()].concat()).await
}

/// Lets workers answer until no request waits and nothing is in flight.
async fn answer_all(gateway: &Running, workers: &[&Worker]) {
    until(|| async {
        for worker in workers {
            worker.go_on();
        }
        let limits = get(gateway, "/debug/limits").await.json();
        let waiting = ["queued", "queued_for_a_worker"].map(|key| limits[key].as_u64().unwrap());
        waiting == [0, 0] && gateway.in_flight().await == 0
    })
    .await;
}

#[tokio::test]
async fn beyond_the_cap_requests_wait_and_beyond_the_queue_they_are_refused() {
    let worker = slow().await;
    let mut options = options(&[&worker]);
    options.max_concurrent_requests = 2;
    options.queue_size = 3;
    let gateway = start_with(options).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(asking(&gateway).await);
    }
    until(|| async { queued(&gateway, "queued").await == 3 }).await;
    let refused = post(&gateway, "/generate", "not even json").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "queue_full")
    );
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(worker.received().len(), 2);
    // What is no inference is not limited.
    assert_eq!(get(&gateway, "/v1/models").await.status, 200);
    answer_all(&gateway, &[&worker]).await;
    for mut client in clients {
        assert_eq!(client.reply().await.status, 200);
    }
    until(|| async { queued(&gateway, "concurrent_requests").await == 0 }).await;
    let metrics = gateway.metrics().await;
    assert!(
        metrics.contains(r#"smg_http_rate_limit_total{result="allowed"} 5"#),
        "{metrics}"
    );
    assert!(metrics.contains(r#"smg_http_rate_limit_total{result="rejected"} 1"#));
    assert!(metrics.contains("smg_http_queue_size_limit 3"));
}

#[tokio::test]
async fn a_place_is_held_to_the_last_byte() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n".to_vec();
    let end = b"0\r\n\r\n".to_vec();
    let worker = Worker::doing(vec![Step::Send(head), Step::Wait, Step::Send(end)]).await;
    let mut options = options(&[&worker]);
    options.max_concurrent_requests = 1;
    let gateway = start_with(options).await;
    let mut first = asking(&gateway).await;
    first.read_until("x").await;
    let _second = asking(&gateway).await;
    until(|| async { queued(&gateway, "queued").await == 1 }).await;
    assert_eq!(worker.received().len(), 1);
    worker.go_on();
    assert!(first.reply().await.whole);
    until(|| async { worker.received().len() == 2 }).await;
}

#[tokio::test]
async fn a_wait_that_is_too_long_ends_on_time() {
    let worker = slow().await;
    let mut options = options(&[&worker]);
    options.max_concurrent_requests = 1;
    options.queue_timeout_secs = 1;
    let gateway = start_with(options).await;
    let _first = asking(&gateway).await;
    until(|| async { worker.received().len() == 1 }).await;
    let started = Instant::now();
    let reply = post(&gateway, "/generate", "{}").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (408, "queue_timeout")
    );
    let took = started.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_millis(1500),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place() {
    let worker = slow().await;
    let mut options = options(&[&worker]);
    options.max_concurrent_requests = 1;
    options.queue_size = 1;
    let gateway = start_with(options).await;
    let _first = asking(&gateway).await;
    until(|| async { worker.received().len() == 1 }).await;
    let waiting = asking(&gateway).await;
    until(|| async { queued(&gateway, "queued").await == 1 }).await;
    drop(waiting);
    until(|| async { queued(&gateway, "queued").await == 0 }).await;
}

#[tokio::test]
async fn no_worker_gets_more_than_its_cap_and_waiting_requests_follow_when_one_is_free() {
    let workers = [slow().await, slow().await];
    let mut options = options(&[&workers[0], &workers[1]]);
    options.max_requests_per_worker = 2;
    options.queue_size = 2;
    let gateway = start_with(options).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(asking(&gateway).await);
    }
    until(|| async { queued(&gateway, "queued_for_a_worker").await == 2 }).await;
    until(|| async { workers.iter().all(|worker| worker.received().len() == 2) }).await;
    let refused = post(&gateway, "/generate", "{}").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "queue_full")
    );
    let metrics = gateway.metrics().await;
    let errors = metrics
        .lines()
        .filter(|line| line.starts_with("smg_router_request_errors_total{"));
    let errors: Vec<_> = errors.collect();
    assert!(
        errors.len() == 1
            && errors[0].contains(r#"endpoint="generate",error_type="internal_error""#),
        "there are workers: {errors:?}"
    );
    answer_all(&gateway, &[&workers[0], &workers[1]]).await;
    let all: usize = workers.iter().map(|worker| worker.received().len()).sum();
    assert_eq!(all, 6);
    for mut client in clients {
        assert_eq!(client.reply().await.status, 200);
    }
}

#[tokio::test]
async fn by_default_nothing_is_limited() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let limits = get(&gateway, "/debug/limits").await.json();
    for none in [
        "max_concurrent_requests",
        "rate_limit_tokens_per_second",
        "max_requests_per_worker",
    ] {
        assert!(limits[none].is_null(), "{limits}");
    }
}

#[tokio::test]
async fn a_worker_that_leaves_finishes_what_it_has() {
    let workers = [slow().await, slow().await];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let mut clients = [asking(&gateway).await, asking(&gateway).await];
    until(|| async { workers.iter().all(|worker| worker.received().len() == 1) }).await;
    let list = get(&gateway, "/workers").await.json();
    let id = list["workers"][0]["id"].as_str().unwrap().to_owned();
    let delete = format!("DELETE /workers/{id} HTTP/1.1\r\nhost: g\r\n\r\n");
    let reply = raw(&gateway, delete.as_bytes()).await;
    assert_eq!(reply.status, 202);
    assert_eq!(reply.json()["worker_id"], *id);
    let path = format!("/workers/{id}");
    let leaving = get(&gateway, &path).await.json();
    assert_eq!(
        (&leaving["status"], &leaving["load"]),
        (&"draining".into(), &1.into())
    );
    let mut elsewhere = [asking(&gateway).await, asking(&gateway).await];
    until(|| async { workers[1].received().len() == 3 }).await;
    assert_eq!(workers[0].received().len(), 1);
    for worker in &workers {
        worker.go_on();
    }
    for client in clients.iter_mut().chain(&mut elsewhere) {
        assert_eq!(client.reply().await.status, 200);
    }
    until(|| async { get(&gateway, &path).await.status == 404 }).await;
    let unknown = get(&gateway, &path).await.json();
    assert_eq!(unknown["code"], "WORKER_NOT_FOUND");
    assert_eq!(get(&gateway, "/workers").await.json()["total"], 1);
    assert_eq!(get(&gateway, "/workers/nonsense").await.status, 400);
}

#[tokio::test]
async fn an_abort_reaches_every_worker_as_it_was_sent() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let reply = post(&gateway, "/abort_request", r#"{"rid":"a-1","x":1.50}"#).await;
    assert_eq!(reply.status, 200);
    for worker in &workers {
        let received = worker.received();
        assert_eq!(received[0].path(), "/abort_request");
        assert_eq!(received[0].body, br#"{"rid":"a-1","x":1.50}"#);
    }
    assert_eq!(
        post(&gateway, "/abort_request", "no json").await.status,
        400
    );
}
