//! Start, stop, API key, request log and counts.

use std::net::TcpStream;
use std::time::Duration;

use sim::{Outcome, SimError, SimOptions};

use testkit::{DEADLINE, posting, request};

use crate::support::{chat, connect, get, post, start, started, until};

#[tokio::test]
async fn a_stopped_worker_closes_its_port_and_connections() {
    let worker = started();
    let mut idle = connect(&worker).await;
    idle.send(&request("GET /health", "", "")).await;
    idle.reply().await;
    assert!(!worker.wait(Duration::ZERO));
    worker.stop();
    assert!(worker.wait(DEADLINE));
    assert!(idle.closed().await);
    assert!(TcpStream::connect(worker.addr()).is_err());
}

#[tokio::test]
async fn a_port_in_use_is_an_error() {
    let worker = started();
    let options = SimOptions {
        port: worker.addr().port(),
        ..SimOptions::default()
    };
    let error = sim::SimWorker::start(options).unwrap_err();
    assert!(matches!(error, SimError::Bind { .. }), "{error}");
}

#[tokio::test]
async fn a_dropped_worker_frees_its_port() {
    let first = started();
    let port = first.addr().port();
    post(&first, "/generate", r#"{"text":"a"}"#).await;
    drop(first);
    start(SimOptions {
        port,
        ..SimOptions::default()
    });
}

#[tokio::test]
async fn a_key_guards_all_paths_but_health_and_metrics() {
    let worker = start(SimOptions {
        api_key: Some("k1".to_owned()),
        ..SimOptions::default()
    });
    for open in ["/health", "/health_generate", "/metrics"] {
        assert_eq!(get(&worker, open).await.status, 200, "{open}");
    }
    let refused = get(&worker, "/v1/models").await;
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (401, r#"{"error":"Unauthorized"}"#)
    );
    for (key, status) in [("Bearer k1", 200), ("Bearer k2", 401), ("k1", 401)] {
        let mut client = connect(&worker).await;
        client
            .send(&request(
                "GET /v1/models",
                &format!("authorization: {key}\r\n"),
                "",
            ))
            .await;
        assert_eq!(client.reply().await.status, status, "{key}");
    }
}

#[tokio::test]
async fn a_starting_worker_is_unhealthy() {
    let worker = start(SimOptions {
        startup_delay_ms: 3_600_000,
        ..SimOptions::default()
    });
    assert_eq!(get(&worker, "/health").await.status, 503);
    assert_eq!(
        post(&worker, "/generate", r#"{"text":"a"}"#).await.status,
        503
    );
    assert_eq!(
        get(&worker, "/server_info").await.json()["status"],
        "starting"
    );
}

#[tokio::test]
async fn requests_are_recorded_byte_for_byte() {
    let worker = started();
    let mut client = connect(&worker).await;
    let body = r#"{ "text" : "a",  "x":1.50 }"#;
    client
        .send(&request(
            "POST /generate?a=b%20c",
            "X-One: 1\r\nx-two: 2\r\nX-One: 3\r\n",
            body,
        ))
        .await;
    client.reply().await;
    client.send(&request("GET /health", "", "")).await;
    client.reply().await;
    let seen = worker.recorded();
    assert_eq!(
        (seen[0].method.as_str(), seen[0].path.as_str()),
        ("POST", "/generate?a=b%20c")
    );
    assert_eq!(seen[0].header("x-one"), ["1", "3"]);
    assert_eq!(&seen[0].body[..], body.as_bytes());
    assert_eq!(seen[0].outcome, Outcome::Finished);
    assert_eq!(seen[0].connection, seen[1].connection);
    assert_eq!(get(&worker, "/sim/requests").await.json()[0]["body"], body);
}

#[tokio::test]
async fn the_request_log_is_bounded_and_reset_clears_it() {
    let worker = start(SimOptions {
        record_requests: 2,
        ..SimOptions::default()
    });
    for path in ["/a", "/b", "/c"] {
        get(&worker, path).await;
    }
    let paths: Vec<String> = worker
        .recorded()
        .into_iter()
        .map(|seen| seen.path)
        .collect();
    assert_eq!(paths, ["/b", "/c"]);
    assert_eq!(
        post(&worker, "/sim/reset", "").await.json()["control_requests"],
        0
    );
    assert!(worker.recorded().is_empty());
}

#[tokio::test]
async fn counts_include_requests_streams_and_connections() {
    let worker = started();
    let mut client = connect(&worker).await;
    client
        .send(&posting(
            "/v1/chat/completions",
            "",
            &chat("a", r#","stream":true"#),
        ))
        .await;
    client.reply().await;
    client
        .send(&posting("/v1/chat/completions", "", &chat("a", "")))
        .await;
    client.reply().await;
    until(&worker, |stats| stats.in_flight == 0).await;
    let stats = worker.stats();
    assert_eq!(
        (stats.requests, stats.streams, stats.connections),
        (2, 1, 1)
    );
    assert_eq!((stats.disconnects, stats.connections_open), (0, 1));
    assert_eq!(get(&worker, "/sim/stats").await.json()["requests"], 2);
    drop(client);
    until(&worker, |stats| stats.connections_open == 0).await;
}
