//! Workers publish their loads: the traffic of other gateways counts at once.

use gateway::config::LoadPush;
use routing::PolicyKind;
use serde_json::json as value;
use sim::{SimOptions, SimWorker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::loads::explained;
use crate::support::{Running, Worker, add, json, ok, options, post, start_with, until};

/// How libzmq 4.3 greets: version 3.1, no security.
const GREETING: [u8; 20] = *b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL\0\0\0\0";
/// What it says of a publisher.
const READY: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB";
/// Topic and number of a message.
const HEAD: &[u8] = b"\x01\x04load\x01\x08\0\0\0\0\0\0\0\x07";
/// The load of one rank, as SGLang 0.5.23 publishes it: 9216 tokens wait.
const BUSY: &[u8] = b"\x9b\xa8LoadStat\x07\x04\xcd\xa0\x28\xce\x00\x04\x00\x00\x03\xcd\x24\x00\
    \xcd\xc4\x28\xcc\x80\xce\x00\x01\x11\x70\xce\x00\x7b\xf4\x40";
/// That of a rank without work, as the first release publishes it.
const IDLE: &[u8] = b"\x96\xa8LoadStat\0\0\0\0\xc0";

/// The next subscriber of a publisher.
async fn subscriber(publisher: &TcpListener) -> TcpStream {
    let (mut stream, _) = publisher.accept().await.unwrap();
    let mut greeting = [0; 64];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting[..10], GREETING[..10]);
    let mut ours = [0; 64];
    ours[..20].copy_from_slice(&GREETING);
    stream.write_all(&ours).await.unwrap();
    stream.write_all(READY).await.unwrap();
    let mut said = [0; 27 + 7];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(said[27..], *b"\0\x05\x01load");
    stream
}

async fn publish(stream: &mut TcpStream, load: &[u8]) {
    let frame = [HEAD, &[0, load.len() as u8], load].concat();
    stream.write_all(&frame).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_load_is_heard_at_once() {
    let sim = || {
        SimWorker::start(SimOptions {
            prefill_tokens_per_sec: 20_000.0,
            decode_step_base_ms: 20.0,
            load_publish_port: Some(0),
            ..SimOptions::default()
        })
        .unwrap()
    };
    let workers = [sim(), sim()];
    let mut options = options(&[]);
    options.worker_urls = workers.iter().map(SimWorker::url).collect();
    options.policy = PolicyKind::LeastLoad;
    let gateway = start_with(options).await;
    let busy = workers[0].url();
    let reported = async || explained(&gateway, &busy).await["reported"].clone();
    until(|| async { reported().await["source"] == "push" }).await;
    let body = value!({"text": "some words of it ".repeat(400), "sampling_params": {"max_new_tokens": 100}});
    let (addr, body) = (workers[0].addr(), body.to_string());
    let other = tokio::spawn(async move { post(addr, "/generate", &body).await.status });
    until(|| async { reported().await["running"] == 1 }).await;
    for _ in 0..8 {
        let short = r#"{"text":"hello","sampling_params":{"max_new_tokens":1}}"#;
        assert_eq!(post(&gateway, "/generate", short).await.status, 200);
    }
    assert_eq!(workers[0].stats().requests, 1);
    assert_eq!(other.await.unwrap(), 200);
    until(|| async { reported().await["running"] == 0 }).await;
    let speed = reported().await["prefill_tokens_per_second"].clone();
    let speed = speed.as_f64().unwrap();
    assert!((19_000.0..21_000.0).contains(&speed), "{speed}");
    let page = gateway.metrics().await;
    assert!(page.contains("smg_worker_load_reports_total{result=\"success\",source=\"push\"}"));
    assert!(!page.contains("source=\"poll\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_are_not_listened_to_where_the_option_is_off() {
    let worker = SimWorker::start(SimOptions {
        load_publish_port: Some(0),
        ..SimOptions::default()
    })
    .unwrap();
    let mut options = options(&[]);
    options.worker_urls = vec![worker.url()];
    options.load_push = LoadPush::Off;
    options.load_poll_interval_secs = 1;
    let gateway = start_with(options).await;
    let url = worker.url();
    let reported = async || explained(&gateway, &url).await["reported"].clone();
    until(|| async { reported().await["source"] == "poll" }).await;
    let page = gateway.metrics().await;
    assert!(!page.contains("source=\"push\""));
}

#[tokio::test]
async fn published_load_counts_until_silence_and_again_after_a_new_connection() {
    let publisher = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = publisher.local_addr().unwrap().port();
    let announced = value!({"kv_events": {"publisher": "zmq", "endpoint_host": "192.0.2.1", "endpoint_port_base": 1,
        "load_endpoint_port_base": port, "load_topic": "load"}});
    let worker = Worker::listening(0, move |request| match request.path() {
        "/server_info" => json(200, &announced.to_string()),
        _ => ok(),
    })
    .await;
    let mut options = options(&[&worker]);
    options.policy = PolicyKind::LeastLoad;
    let gateway = start_with(options).await;
    let url = worker.url();
    let reported = async || explained(&gateway, &url).await["reported"].clone();
    let mut stream = subscriber(&publisher).await;
    assert!(reported().await.is_null());
    publish(&mut stream, BUSY).await;
    until(|| async { reported().await["queued_tokens"] == 9216 }).await;
    let counted = reported().await;
    let of = |name: &str| counted[name].as_u64().unwrap();
    assert_eq!((of("running"), of("waiting")), (7, 4));
    assert_eq!((of("kv_tokens"), of("max_kv_tokens")), (41_000, 262_144));
    let candidate = explained(&gateway, &url).await;
    assert!(candidate["cost"].as_f64().unwrap() > 0.0, "{candidate}");
    drop(stream);
    let mut stream = subscriber(&publisher).await;
    publish(&mut stream, IDLE).await;
    until(|| async { reported().await["running"] == 0 }).await;
    until(|| async { reported().await.is_null() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rank_is_heard_at_its_own_port() {
    let worker = SimWorker::start(SimOptions {
        dp_size: 2,
        decode_step_base_ms: 20.0,
        load_publish_port: Some(0),
        ..SimOptions::default()
    })
    .unwrap();
    let start = async |dp_aware, ranks| {
        let mut options = options(&[]);
        options.policy = PolicyKind::LeastLoad;
        options.dp_aware = dp_aware;
        let gateway = start_with(options).await;
        add(&gateway, &value!({"url": worker.url()})).await;
        gateway.has_ready(ranks).await;
        gateway
    };
    let (by_rank, whole) = (start(true, 2).await, start(false, 1).await);
    let running = async |gateway: &Running, worker: &str| {
        let reported = explained(gateway, worker).await["reported"].clone();
        reported["running"].as_u64()
    };
    let url = worker.url();
    let ranks = [format!("{url}@0"), format!("{url}@1")];
    let requests: Vec<_> = [0, 1, 1]
        .map(|rank| {
            let sampling = value!({"max_new_tokens": 200, "ignore_eos": true});
            let body = value!({"text": "x", "sampling_params": sampling, "routed_dp_rank": rank});
            let (addr, body) = (worker.addr(), body.to_string());
            tokio::spawn(async move { post(addr, "/generate", &body).await.status })
        })
        .into();
    until(|| async { running(&by_rank, &ranks[0]).await == Some(1) }).await;
    until(|| async { running(&by_rank, &ranks[1]).await == Some(2) }).await;
    until(|| async { running(&whole, &url).await == Some(3) }).await;
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    until(|| async { running(&whole, &url).await == Some(0) }).await;
}
