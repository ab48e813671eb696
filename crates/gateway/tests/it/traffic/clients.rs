//! Clients that are slow, silent, gone, or too many.

use std::time::Duration;

use gateway::Options;
use tokio::time::{Instant, sleep};

use crate::support::{
    Client, Running, Step, Worker, chat_stream, generate, get, ok, options, post, posting,
    start_with, until,
};

/// A stream without end, in large pieces.
fn endless() -> Vec<Step> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let event = format!("data: {}\n\n", "x".repeat(60_000));
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    let mut steps = vec![Step::Send(head.into())];
    steps.extend((0..250).map(|_| Step::Send(chunk.clone().into_bytes())));
    steps
}

async fn gateway(workers: &[&Worker], set: impl FnOnce(&mut Options)) -> Running {
    let mut options = options(workers);
    set(&mut options);
    start_with(options).await
}

#[tokio::test]
async fn client_that_does_not_read_gives_its_place_and_its_share_of_the_worker_back() {
    let worker = Worker::scripted(|request| {
        if request.head.starts_with("POST") {
            endless()
        } else {
            ok()
        }
    })
    .await;
    let gateway = gateway(&[&worker], |options| {
        options.client_write_timeout_secs = 1;
        options.max_concurrent_requests = 1;
    })
    .await;
    let mut reader = Client::to(&gateway).await;
    reader.send(&chat_stream()).await;
    until(|| async { gateway.in_flight().await == 1 }).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
    let limits = get(&gateway, "/debug/limits").await.json();
    assert_eq!(limits["concurrent_requests"], 0, "{limits}");
    until(|| async { worker.disconnects() == 1 }).await;
}

#[tokio::test]
async fn silent_client_ends_after_the_time_for_heads_and_an_idle_one_later() {
    let worker = Worker::doing(ok()).await;
    let gateway = gateway(&[&worker], |options| {
        options.client_header_timeout_secs = 1;
        options.client_idle_timeout_secs = 4;
    })
    .await;
    let mut idle = Client::asking(&gateway, "").await;
    assert_eq!(idle.reply().await.status, 200);
    let begun = Instant::now();
    let mut silent = Client::to(&gateway).await;
    let mut slow = Client::to(&gateway).await;
    slow.send(b"POST /generate HT").await;
    assert!(silent.closed().await && slow.closed().await);
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    // The idle one still serves.
    idle.send(&generate("")).await;
    assert_eq!(idle.reply().await.status, 200);
    assert!(idle.closed().await);
}

#[tokio::test]
async fn client_that_leaves_is_noticed_although_it_sent_bytes_of_another_request() {
    let worker = Worker::scripted(|request| {
        if request.head.starts_with("POST") {
            vec![Step::Hang]
        } else {
            ok()
        }
    })
    .await;
    let gateway = gateway(&[&worker], |_| {}).await;
    for more in [&b"\r\n"[..], b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n"] {
        let mut client = Client::to(&gateway).await;
        client
            .send(&[&posting("/generate", "", "{}"), more].concat())
            .await;
        until(|| async { gateway.in_flight().await == 1 }).await;
        drop(client);
        until(|| async { gateway.in_flight().await == 0 }).await;
    }
}

#[tokio::test]
async fn idle_connections_give_way_when_clients_are_too_many() {
    let worker = Worker::doing(ok()).await;
    let gateway = gateway(&[&worker], |options| options.max_client_connections = 12).await;
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(Client::to(&gateway).await);
    }
    sleep(Duration::from_millis(10)).await;
    for _ in 0..3 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
}

#[tokio::test]
async fn connections_without_requests_for_seconds_serve_on_and_lose_no_byte() {
    let worker = Worker::doing(ok()).await;
    let gateway = gateway(&[&worker], |options| {
        options.client_header_timeout_secs = 3;
    })
    .await;
    let request = posting("/generate", "", "{}");
    let mut clients = Vec::new();
    // What has come of the next request beside the one before: nothing, some, or nearly all.
    for early in [0, 1, request.len() / 2, request.len() - 1] {
        let mut client = Client::to(&gateway).await;
        client.send(&[&request, &request[..early]].concat()).await;
        assert_eq!(client.reply().await.status, 200);
        clients.push((client, early));
    }
    for _ in 0..2 {
        // The watchdog has looked at all of them when it ends this one.
        assert!(Client::to(&gateway).await.closed().await);
        for (client, early) in &mut clients {
            client.send(&request[*early..]).await;
            assert_eq!(client.reply().await.status, 200, "{early} bytes before");
            *early = 0;
        }
    }
    assert!(Client::to(&gateway).await.closed().await);
    gateway.gateway.drain();
    for (mut client, _) in clients {
        assert!(client.closed().await);
    }
    until(|| async { gateway.gateway.wait(Duration::ZERO) }).await;
}
