//! `/add_worker`, which waits: what becomes of the worker when it, its client or the gateway goes.

use std::time::Duration;

use serde_json::json as value;

use crate::support::{
    Client, Running, Worker, add, bare, get, ok, options, shown, start_with, until, until_gone,
    until_status,
};

/// A gateway that waits for a worker for so long, and the URL of one that is down.
async fn waiting_for(seconds: u64) -> (Running, String) {
    let dead = Worker::doing(ok()).await;
    let url = dead.url();
    dead.kill().await;
    let mut options = options(&[]);
    options.worker_startup_timeout_secs = seconds;
    (start_with(options).await, url)
}

async fn wait_for(gateway: &Running, url: &str) -> Client {
    let mut client = Client::to(gateway).await;
    let head =
        format!("POST /add_worker?url={url} HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n");
    client.send(head.as_bytes()).await;
    client
}

async fn listed(gateway: &Running) -> usize {
    let list = get(gateway, "/list_workers").await.json();
    list["urls"].as_array().unwrap().len()
}

async fn until_listed(gateway: &Running, count: usize) {
    until(|| async { listed(gateway).await == count }).await;
}

#[tokio::test]
async fn a_worker_that_only_its_client_wanted_goes_with_it() {
    let (gateway, url) = waiting_for(1000).await;
    let client = wait_for(&gateway, &url).await;
    until_listed(&gateway, 1).await;
    drop(client);
    until_listed(&gateway, 0).await;
    assert!(!gateway.metrics().await.contains(&url));
}

#[tokio::test]
async fn a_worker_that_another_client_registers_meanwhile_stays() {
    let (gateway, url) = waiting_for(1).await;
    let mut client = wait_for(&gateway, &url).await;
    until_listed(&gateway, 1).await;
    let id = add(&gateway, &value!({"url": url})).await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("still listed"), "{}", reply.text());
    assert_ne!(shown(&gateway, &id).await["status"], "draining");
    // Two clients wait: it stays until the last of them leaves.
    bare(&gateway, &format!("DELETE /workers/{id}")).await;
    until_gone(&gateway, &id).await;
    let mut waiting = [
        wait_for(&gateway, &url).await,
        wait_for(&gateway, &url).await,
    ];
    let mut replies = Vec::new();
    for client in &mut waiting {
        let reply = client.reply().await;
        replies.push((reply.status, reply.text().contains("was not added")));
    }
    replies.sort_unstable();
    assert_eq!(replies, [(400, false), (400, true)]);
    until_listed(&gateway, 0).await;
}

#[tokio::test]
async fn a_known_worker_that_does_not_come_back_stays_listed() {
    let (gateway, _) = waiting_for(1).await;
    let worker = Worker::doing(ok()).await;
    let url = worker.url();
    let id = add(&gateway, &value!({"url": url})).await;
    until_status(&gateway, &id, "ready").await;
    worker.kill().await;
    assert!(gateway.gateway.suspect(&url));
    until_status(&gateway, &id, "not_ready").await;
    let reply = wait_for(&gateway, &url).await.reply().await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("still listed"), "{}", reply.text());
    assert_eq!(shown(&gateway, &id).await["status"], "not_ready");
}

#[tokio::test]
async fn a_client_that_waits_for_a_removed_worker_gets_an_error() {
    let (gateway, url) = waiting_for(1000).await;
    let mut client = wait_for(&gateway, &url).await;
    until_listed(&gateway, 1).await;
    let gone = bare(&gateway, &format!("POST /remove_worker?url={url}")).await;
    assert_eq!(gone.status, 200);
    let reply = client.reply().await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("was removed"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_a_worker_does_not_delay_a_stop() {
    let (gateway, url) = waiting_for(1000).await;
    let mut client = wait_for(&gateway, &url).await;
    until_listed(&gateway, 1).await;
    gateway.gateway.drain();
    assert!(gateway.gateway.wait(Duration::from_secs(8)));
    let reply = client.reply().await;
    assert!(reply.text().contains("stopping"), "{}", reply.text());
}
