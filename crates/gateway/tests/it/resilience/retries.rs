//! Requests that are tried again, and requests that are not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    Client, Step, Worker, chat_stream, get, json, ok, options, post, posting, raw, start,
    start_with, until,
};

fn text(text: &str) -> Step {
    Step::Send(text.as_bytes().to_vec())
}

/// A worker that fails so many times and then answers.
async fn fails(times: usize, with: Vec<Step>) -> Worker {
    let asked = AtomicUsize::new(0);
    Worker::scripted(move |_| {
        if asked.fetch_add(1, Ordering::SeqCst) < times {
            with.clone()
        } else {
            ok()
        }
    })
    .await
}

#[tokio::test]
async fn a_failure_before_the_first_byte_is_tried_elsewhere() {
    for failure in [
        json(500, "{}"),
        json(502, "{}"),
        json(503, r#"{"message":"The request queue is full."}"#),
        json(429, "{}"),
        json(408, "{}"),
        vec![Step::Close],
        vec![Step::Reset],
    ] {
        let (bad, good) = (Worker::doing(failure).await, Worker::doing(ok()).await);
        let gateway = start(&[&bad, &good]).await;
        for _ in 0..6 {
            assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
        }
        assert!(!bad.received().is_empty());
        assert_eq!(good.received().len(), 6);
        assert_eq!(gateway.in_flight().await, 0);
    }
}

#[tokio::test]
async fn a_client_error_is_the_answer() {
    for status in [400, 401, 404, 413, 422, 501] {
        let workers = [
            Worker::doing(json(status, "{}")).await,
            Worker::doing(ok()).await,
        ];
        let gateway = start(&[&workers[0], &workers[1]]).await;
        // The key is the client's own, so its refusal is the client's answer.
        let request = posting("/generate", "authorization: Bearer mine\r\n", "{}");
        let statuses = [
            raw(&gateway, &request).await.status,
            raw(&gateway, &request).await.status,
        ];
        assert!(statuses.contains(&status) && statuses.contains(&200));
        assert_eq!(workers[1].received().len(), 1);
    }
}

#[tokio::test]
async fn when_all_refuse_the_last_answer_comes_as_it_is() {
    let refusal = text(
        "HTTP/1.1 429 Too Many\r\nretry-after: 7\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 4\r\n\r\nfull",
    );
    let workers = [
        Worker::doing(vec![refusal.clone()]).await,
        Worker::doing(vec![refusal]).await,
    ];
    let mut options = options(&[&workers[0], &workers[1]]);
    options.retry_max_retries = 3;
    options.retry_initial_backoff_ms = 1;
    let gateway = start_with(options).await;
    let reply = post(&gateway, "/generate", "{}").await;
    assert_eq!((reply.status, reply.text().as_str()), (429, "full"));
    assert_eq!(reply.header("retry-after"), "7");
    assert_eq!(reply.all("x-a"), ["1", "2"]);
    // Each once at once; then, after a pause that is an attempt of its own, no worker is left to try.
    assert_eq!(workers[0].received().len() + workers[1].received().len(), 3);
    assert!(reply.whole);
    let metrics = gateway.metrics().await;
    assert!(
        metrics
            .contains(r#"smg_worker_retries_total{endpoint="generate",worker_type="regular"} 2"#),
        "{metrics}"
    );
    assert!(metrics.contains(
        r#"smg_worker_retries_exhausted_total{endpoint="generate",worker_type="regular"} 1"#
    ));
    assert!(metrics.contains(r#"smg_worker_retry_backoff_seconds_count{attempt="2"} 1"#));
}

#[tokio::test]
async fn the_only_worker_is_asked_again_after_a_pause() {
    let worker = fails(2, json(500, "{}")).await;
    let gateway = start(&[&worker]).await;
    let started = tokio::time::Instant::now();
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    assert_eq!(worker.received().len(), 3);
    assert!(started.elapsed() >= Duration::from_millis(40 + 60));
}

#[tokio::test]
async fn another_worker_is_asked_without_a_pause() {
    let (bad, good) = (
        Worker::doing(json(500, "{}")).await,
        Worker::doing(ok()).await,
    );
    let mut options = options(&[&bad, &good]);
    options.retry_initial_backoff_ms = 60_000;
    options.retry_max_backoff_ms = 60_000;
    let gateway = start_with(options).await;
    for _ in 0..4 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
}

#[tokio::test]
async fn without_retries_a_request_is_sent_once() {
    let (bad, good) = (
        Worker::doing(json(500, "{}")).await,
        Worker::doing(ok()).await,
    );
    let mut options = options(&[&bad, &good]);
    options.disable_retries = true;
    let gateway = start_with(options).await;
    for _ in 0..4 {
        post(&gateway, "/generate", "{}").await;
    }
    assert_eq!((bad.received().len(), good.received().len()), (2, 2));
}

#[tokio::test]
async fn all_tries_together_take_no_longer_than_the_request_timeout() {
    let worker = Worker::doing(json(500, "{}")).await;
    let mut options = options(&[&worker]);
    options.request_timeout_secs = 1;
    options.retry_max_retries = 100;
    options.retry_initial_backoff_ms = 300;
    options.retry_budget_ratio = 100.0;
    options.cb_failure_threshold = 1000;
    let gateway = start_with(options).await;
    let started = tokio::time::Instant::now();
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 500);
    assert!(started.elapsed() < Duration::from_millis(1500));
    assert!((2..5).contains(&worker.received().len()));
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    let worker = Worker::doing(json(500, "{}")).await;
    let mut options = options(&[&worker]);
    options.retry_initial_backoff_ms = 0;
    options.retry_budget_min_per_sec = 1;
    options.disable_circuit_breaker = true;
    let gateway = start_with(options).await;
    let started = tokio::time::Instant::now();
    for _ in 0..200 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 500);
    }
    let retries = worker.received().len() - 200;
    let most = 20.0 + 10.0 + started.elapsed().as_secs_f64();
    assert!(retries >= 10 && retries as f64 <= most, "{retries}");
}

#[tokio::test]
async fn a_refused_connection_costs_no_budget_and_no_request() {
    let (gone, good) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let mut options = options(&[&gone, &good]);
    options.retry_budget_ratio = 0.0;
    options.retry_budget_min_per_sec = 0;
    let gateway = start_with(options).await;
    drop(gone);
    for _ in 0..20 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
    assert_eq!(good.received().len(), 20);
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_not_tried_again_and_ends_with_an_error_event() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let bad = Worker::doing(vec![text(head), text("9\r\ndata: 1\n\n\r\n"), Step::Close]).await;
    let gateway = start(&[&bad]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    let reply = client.reply().await;
    assert!(!reply.whole, "an abnormal end stays abnormal");
    let body = reply.text();
    let (first, last) = body.split_at("data: 1\n\n".len());
    assert_eq!(first, "data: 1\n\n");
    let event = last.strip_prefix("data: ").unwrap().trim_end();
    let event: serde_json::Value = serde_json::from_str(event).unwrap();
    assert_eq!(event["error"]["code"], "stream_error");
    assert!(last.ends_with("\n\n"));
    assert_eq!(bad.received().len(), 1);
}

#[tokio::test]
async fn no_event_is_added_amid_another_after_the_last_or_to_what_is_no_stream_of_events() {
    let events =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let plain = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
    let sized = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99\r\n\r\n";
    for (head, piece, body) in [
        (events, "e\r\ndata: [DONE]\n\n\r\n", "data: [DONE]\n\n"),
        (events, "7\r\ndata: 1\r\n", "data: 1"),
        (plain, "9\r\ndata: 1\n\n\r\n", "data: 1\n\n"),
        (sized, "data: 1\n\n", "data: 1\n\n"),
    ] {
        let bad = Worker::doing(vec![text(head), text(piece), Step::Close]).await;
        let gateway = start(&[&bad]).await;
        let mut client = Client::to(&gateway).await;
        client.send(&chat_stream()).await;
        let reply = client.reply().await;
        assert_eq!((reply.text().as_str(), reply.whole), (body, false));
    }
}

#[tokio::test]
async fn a_worker_that_closes_after_every_stream_loses_no_request_even_without_retries() {
    let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: keep-alive\r\n\
        transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n0\r\n\r\n";
    let worker = Worker::doing(vec![text(stream), Step::Close]).await;
    let mut options = options(&[&worker]);
    options.disable_retries = true;
    let gateway = start_with(options).await;
    let mut client = Client::to(&gateway).await;
    for _ in 0..300 {
        client.send(&chat_stream()).await;
        let reply = client.reply().await;
        assert!(reply.status == 200 && reply.whole, "{reply:?}");
    }
    assert_eq!(worker.received().len(), 300);
}

#[tokio::test]
async fn a_retry_shows_in_the_explanation() {
    let (bad, good) = (
        Worker::doing(json(500, "{}")).await,
        Worker::doing(ok()).await,
    );
    let mut options = options(&[&bad, &good]);
    options.explain_routing = true;
    let gateway = start_with(options).await;
    let replies = [
        post(&gateway, "/generate", "{}").await,
        post(&gateway, "/generate", "{}").await,
    ];
    assert!(
        replies
            .iter()
            .any(|reply| reply.header("x-smg-tries") == "2")
    );
    assert!(
        replies
            .iter()
            .all(|reply| reply.header("x-smg-routed-worker") == good.url())
    );
    let decisions = get(&gateway, "/debug/decisions").await.json();
    assert!(
        decisions["decisions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["tries_before"] == 1)
    );
}

#[tokio::test]
async fn a_target_that_fails_is_asked_again_and_nobody_else() {
    let (target, other) = (fails(1, json(503, "{}")).await, Worker::doing(ok()).await);
    let gateway = start(&[&target, &other]).await;
    let mut client = Client::asking(&gateway, "x-smg-target-worker: 0\r\n").await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!((target.received().len(), other.received().len()), (2, 0));
}

#[tokio::test]
async fn a_client_that_leaves_between_two_tries_ends_the_request() {
    let worker = Worker::doing(json(500, "{}")).await;
    let mut options = options(&[&worker]);
    options.retry_initial_backoff_ms = 300;
    let gateway = start_with(options).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    until(|| async { worker.received().len() == 1 }).await;
    drop(client);
    let gone = r#"smg_http_responses_total{error_code="client_closed_request""#;
    until(|| async { gateway.metrics().await.contains(gone) }).await;
    assert_eq!(worker.received().len(), 1);
}
