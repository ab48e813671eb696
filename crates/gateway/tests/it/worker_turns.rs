//! One worker after another: in the same slot, at the same address.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json as value};

use crate::support::{Client, Step, Worker, get, ok, options, post, start, start_with, until};
use crate::workers::{add, bare, shown, until_gone, until_status};

#[tokio::test]
async fn a_request_in_flight_does_not_count_for_the_next_worker_in_its_slot() {
    let old = Worker::doing(vec![
        Step::Wait,
        Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()),
    ])
    .await;
    let new = Worker::doing(ok()).await;
    let mut options = options(&[&old]);
    options.worker_drain_timeout_secs = 0;
    let gateway = start_with(options).await;
    let list = get(&gateway, "/workers").await.json();
    let id = list["workers"][0]["id"].as_str().unwrap().to_owned();
    let mut client = Client::to(&gateway).await;
    client
        .send(b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    until(|| async { old.received().len() == 1 }).await;
    bare(&gateway, &format!("DELETE /workers/{id}")).await;
    until_gone(&gateway, &id).await;
    let newcomer = add(&gateway, &value!({"url": new.url()})).await;
    until_status(&gateway, &newcomer, "ready").await;
    let one = shown(&gateway, &newcomer).await;
    assert_eq!((&one["index"], &one["load"]), (&0.into(), &0.into()));
    // Decisions about the old one are not told of the new one.
    let told = get(&gateway, "/debug/decisions").await.json();
    assert_eq!(told["decisions"][0]["worker"], Value::Null);
    old.go_on();
    assert_eq!(client.reply().await.status, 200);
    let one = shown(&gateway, &newcomer).await;
    assert_eq!((&one["load"], gateway.in_flight().await), (&0.into(), 0));
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
}

#[tokio::test]
async fn a_url_may_come_back_while_its_last_worker_still_leaves() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let worker = Worker::scripted(|_| {
        if ASKED.fetch_add(1, Ordering::SeqCst) == 0 {
            vec![Step::Wait]
        } else {
            ok()
        }
    })
    .await;
    let gateway = start(&[&worker]).await;
    let list = get(&gateway, "/workers").await.json();
    let old = list["workers"][0]["id"].as_str().unwrap().to_owned();
    let mut client = Client::to(&gateway).await;
    client
        .send(b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    until(|| async { worker.received().len() == 1 }).await;
    bare(&gateway, &format!("DELETE /workers/{old}")).await;
    let new = add(&gateway, &value!({"url": worker.url()})).await;
    assert_ne!(old, new);
    until_status(&gateway, &new, "ready").await;
    assert_eq!(shown(&gateway, &old).await["status"], "draining");
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    drop(client);
    until_gone(&gateway, &old).await;
    let health = format!("smg_worker_health{{worker=\"{}\"}} 1", worker.url());
    assert!(gateway.metrics().await.contains(&health));
}
