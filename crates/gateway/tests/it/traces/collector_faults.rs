//! Collectors that are away, refuse or hang.

use std::time::Duration;

use gateway::Gateway;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::collector::{over_http, spans_over_http, traced};
use crate::support::{Running, Step, Worker, json, ok, post, start_with, until};

/// What became of traces, by the metrics page.
async fn count(gateway: &Running, result: &str) -> u64 {
    let page = gateway.metrics().await;
    let name = format!("smg_traces_total{{result=\"{result}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_over_http_gets_protobuf_at_the_path_of_its_url() {
    let worker = Worker::doing(ok()).await;
    let collector = over_http(json(200, "")).await;
    let endpoint = format!("{}/v1/traces", collector.url());
    let gateway = start_with(traced(&[&worker], endpoint)).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    until(|| async { count(&gateway, "sent").await == 1 }).await;
    let received = collector.received().remove(0);
    assert_eq!(received.path(), "/v1/traces");
    assert_eq!(received.all("content-type"), ["application/x-protobuf"]);
    assert_eq!(spans_over_http(&collector).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_collector_refuses_is_counted() {
    let worker = Worker::doing(ok()).await;
    let collector = over_http(json(400, "{}")).await;
    let endpoint = format!("{}/v1/traces", collector.url());
    let gateway = start_with(traced(&[&worker], endpoint)).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    until(|| async { count(&gateway, "not_sent").await == 1 }).await;
    assert_eq!(count(&gateway, "sent").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_that_comes_back_gets_what_waited() {
    let worker = Worker::doing(ok()).await;
    let collector = over_http(json(200, "")).await;
    let (endpoint, port) = (format!("{}/v1/traces", collector.url()), collector.port());
    collector.kill().await;
    let gateway = start_with(traced(&[&worker], endpoint)).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    let collector = Worker::listening(port, |_| json(200, "")).await;
    until(|| async { spans_over_http(&collector).len() == 2 }).await;
    assert_eq!(count(&gateway, "not_sent").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_that_hangs_holds_up_no_request_and_a_stop_for_two_seconds_at_most() {
    let hanging = over_http(vec![Step::Hang]).await;
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    for endpoint in [format!("{}/v1/traces", hanging.url()), silent] {
        let worker = Worker::doing(ok()).await;
        let gateway = start_with(traced(&[&worker], endpoint)).await;
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?}");
        let begun = Instant::now();
        gateway.gateway.drain();
        let stopped = || async { gateway.gateway.wait(Duration::ZERO) };
        until(stopped).await;
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(2500), "{took:?}");
    }
}

#[tokio::test]
async fn endpoint_that_is_no_url_ends_the_start() {
    let options = traced(&[], "grpc://collector:4317".to_owned());
    let error = Gateway::start(&options).unwrap_err().to_string();
    let wanted = "'otlp_traces_endpoint': \"grpc://collector:4317\" - must start with http://";
    assert!(error.contains(wanted), "{error}");
}
