//! Stopping: what is in flight finishes, unless it is cut short.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use gateway::{Gateway, StartError};
use tokio::net::TcpStream;

use crate::support::{
    Client, Step, Worker, generate, get, json, ok, options, post, start, start_with, until,
};

async fn refuses(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).await.is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_requests_finish_and_takes_no_new_ones() {
    let slow = [vec![Step::Wait], ok()].concat();
    let worker = Worker::doing(slow).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::asking(&gateway, "").await;
    until(|| async { worker.received().len() == 1 }).await;
    gateway.gateway.drain();
    let addr = gateway.gateway.addr();
    until(|| async { refuses(addr).await }).await;
    assert!(!gateway.gateway.wait(Duration::from_millis(50)));
    worker.go_on();
    assert_eq!(client.reply().await.status, 200);
    assert!(client.closed().await);
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_gateway_stops_at_once_even_with_open_connections() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::asking(&gateway, "").await;
    client.reply().await;
    gateway.gateway.drain();
    assert!(gateway.gateway.wait(Duration::from_secs(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_ends_what_is_in_flight() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::asking(&gateway, "").await;
    until(|| async { worker.received().len() == 1 }).await;
    gateway.gateway.drain();
    gateway.gateway.abort();
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
    assert!(client.closed().await);
    until(|| async { worker.disconnects() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_period_bounds_the_drain() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let mut options = options(&[&worker]);
    options.shutdown_grace_period_secs = 1;
    let gateway = start_with(options).await;
    let _client = Client::asking(&gateway, "").await;
    until(|| async { worker.received().len() == 1 }).await;
    gateway.gateway.drain();
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
}

#[tokio::test]
async fn several_gateways_live_side_by_side() {
    let worker = Worker::doing(json(200, "{}")).await;
    let (one, other) = (start(&[&worker]).await, start(&[&worker]).await);
    drop(one);
    assert_eq!(post(&other, "/generate", "{}").await.status, 200);
}

#[tokio::test]
async fn a_port_in_use_is_named_in_the_error() {
    let gateway = start(&[]).await;
    let mut options = options(&[]);
    options.port = gateway.gateway.addr().port();
    let error = Gateway::start(&options).unwrap_err();
    assert!(matches!(error, StartError::Environment { .. }));
    assert!(
        error.to_string().contains(&options.port.to_string()),
        "{error}"
    );
    options.port = 0;
    options.host = "no such host".into();
    assert!(matches!(
        Gateway::start(&options).unwrap_err(),
        StartError::Environment { .. }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_head_does_not_hold_up_the_drain() {
    let gateway = start(&[]).await;
    let mut client = Client::to(&gateway).await;
    client.send(b"GET /hea").await;
    gateway.gateway.drain();
    assert!(gateway.gateway.wait(Duration::from_secs(2)));
}

#[tokio::test]
async fn a_log_directory_that_cannot_be_written_is_named_in_the_error() {
    let mut options = options(&[]);
    options.log_dir = Some("/proc/self".into());
    let error = Gateway::start(&options).unwrap_err();
    assert!(error.to_string().contains("log_dir"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_arrive_with_the_drain_do_not_cut_it_short() {
    for _ in 0..10 {
        let worker = Worker::doing([vec![Step::Wait], ok()].concat()).await;
        let gateway = start(&[&worker]).await;
        let mut client = Client::asking(&gateway, "").await;
        until(|| async { worker.received().len() == 1 }).await;
        let addr = gateway.gateway.addr();
        let storm = tokio::spawn(async move { while !refuses(addr).await {} });
        gateway.gateway.drain();
        storm.await.unwrap();
        worker.go_on();
        assert_eq!(client.reply().await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drains_says_so_and_serves_until_then() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.shutdown_grace_period_secs = 1;
    // Where only this machine can connect, nothing settles.
    options.host = "0.0.0.0".into();
    let gateway = start_with(options).await;
    let mut kept = Client::asking(&gateway, "").await;
    assert_eq!(kept.reply().await.header("connection"), "");
    gateway.gateway.lame_duck();
    let ready = get(&gateway, "/readiness").await;
    assert_eq!(
        (ready.status, &ready.json()["reason"]),
        (503, &"draining".into())
    );
    kept.send(&generate("")).await;
    let reply = kept.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, "close"));
    assert!(kept.closed().await);
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
    assert!(refuses(gateway.gateway.addr()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_made_before_the_drain_gets_its_first_request_served() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    gateway.gateway.drain();
    client.send(&generate("")).await;
    assert_eq!(client.reply().await.status, 200);
    assert!(gateway.gateway.wait(Duration::from_secs(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_gateway_takes_over_the_port_without_losing_a_request() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.reuse_port = true;
    options.shutdown_grace_period_secs = 1;
    let old = start_with(options.clone()).await;
    options.port = old.gateway.addr().port();
    let (addr, over) = (old.gateway.addr(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let over = Arc::clone(&over);
            tokio::spawn(async move {
                let mut served = 0;
                while !over.load(Ordering::SeqCst) {
                    let mut client = Client::to(addr).await;
                    client.send(&generate("")).await;
                    assert_eq!(client.reply().await.status, 200);
                    served += 1;
                }
                served
            })
        })
        .collect();
    let new = Gateway::start(&options).unwrap();
    old.gateway.lame_duck();
    assert!(old.gateway.wait(Duration::from_secs(10)));
    over.store(true, Ordering::SeqCst);
    let mut served = 0;
    for client in clients {
        served += client.await.unwrap();
    }
    assert!(served > 100, "{served}");
    assert_eq!(new.addr().port(), addr.port());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_gets_its_whole_reply_during_a_drain() {
    let body = "x".repeat(8 << 20);
    let worker = Worker::doing(json(200, &body)).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::asking(&gateway, "").await;
    client.read_until("xxxx").await;
    gateway.gateway.drain();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let reply = client.reply().await;
    assert!(reply.whole && reply.body.len() == body.len());
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_reads_nothing_does_not_use_up_the_grace_period() {
    let body = "x".repeat(32 << 20);
    let worker = Worker::doing(json(200, &body)).await;
    let mut options = options(&[&worker]);
    options.shutdown_grace_period_secs = 4;
    let gateway = start_with(options).await;
    let mut client = Client::asking(&gateway, "").await;
    client.read_until("xxxx").await;
    let begun = Instant::now();
    gateway.gateway.drain();
    assert!(gateway.gateway.wait(Duration::from_secs(10)));
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(3900), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_that_only_this_machine_uses_stops_at_once() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    let begun = Instant::now();
    gateway.gateway.lame_duck();
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}
