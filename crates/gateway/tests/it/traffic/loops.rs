//! Requests that come back, and bodies that take too much.

use crate::support::{
    Client, Worker, get, ok, options, post, posting, raw, start, start_with, until,
};

#[tokio::test]
async fn gateway_that_is_its_own_worker_is_never_ready_and_serves_on() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let own = format!("http://{}", gateway.gateway.addr());
    assert_eq!(
        post(&gateway, "/workers", &format!(r#"{{"url":"{own}"}}"#))
            .await
            .status,
        202
    );
    for _ in 0..4 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
    assert_eq!(
        get(&gateway, "/readiness").await.json()["healthy_workers"],
        1
    );
    let flushed = post(&gateway, "/flush_cache", "").await;
    assert!(matches!(flushed.status, 200 | 206), "{flushed:?}");
}

#[tokio::test]
async fn two_gateways_that_list_each_other_answer_a_request_once() {
    let (one, two) = (start(&[]).await, start(&[]).await);
    let url = |gateway: &crate::support::Running| format!("http://{}", gateway.gateway.addr());
    for (gateway, other) in [(&one, &two), (&two, &one)] {
        let body = format!(r#"{{"url":"{}"}}"#, url(other));
        assert_eq!(post(gateway, "/workers", &body).await.status, 202);
    }
    one.has_ready(1).await;
    two.has_ready(1).await;
    let reply = post(&one, "/generate", "{}").await;
    assert_eq!(reply.status, 508, "{reply:?}");
    assert_eq!(one.in_flight().await + two.in_flight().await, 0);
}

#[tokio::test]
async fn worker_sees_the_gateways_mark_after_those_of_other_proxies() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let request = posting("/generate", "via: 1.1 nginx\r\n", "{}");
    assert_eq!(raw(&gateway, &request).await.status, 200);
    for received in worker.received() {
        let marks = received.all("via");
        let own = marks.last().copied().unwrap_or_default();
        assert!(
            own.starts_with("1.1 smg-"),
            "{}: {marks:?}",
            received.path()
        );
        let client = usize::from(received.path() == "/generate");
        assert_eq!(marks.len(), 1 + client);
    }
}

#[tokio::test]
async fn bodies_over_the_budget_are_refused_and_others_served() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.max_buffered_bytes = Some(1024 * 1024);
    let gateway = start_with(options).await;
    let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(700_000));
    let request = posting("/generate", "", &body);
    let mut first = Client::to(&gateway).await;
    // All but the last byte: the body is held.
    first.send(&request[..request.len() - 1]).await;
    let line = "smg_http_buffered_bytes 786432";
    until(|| async { gateway.metrics().await.contains(line) }).await;
    let refused = raw(&gateway, &request).await;
    assert_eq!(refused.code(), "request_memory_exhausted");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    first.send(&request[request.len() - 1..]).await;
    assert_eq!(first.reply().await.status, 200);
    assert_eq!(raw(&gateway, &request).await.status, 200);
}
