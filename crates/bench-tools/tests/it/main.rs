//! The load generator against the mock worker and against servers that misbehave.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bench_tools::load::{LoadOptions, Report, run};
use bench_tools::worker::{WorkerOptions, bind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};

/// A second of load, after `fields` of the options, against mock workers with these options.
async fn against_workers(worker: &str, fields: &str) -> Report {
    let options = WorkerOptions::from_json(&format!(r#"{{"ports": [0, 0] {worker}}}"#)).unwrap();
    let workers = bind(&options).unwrap();
    let port = workers.ports().unwrap()[1];
    let serving = async {
        spawn_local(workers.serve());
        load(port, fields).await
    };
    LocalSet::new().run_until(serving).await
}

async fn load(port: u16, fields: &str) -> Report {
    let json =
        format!(r#"{{"port": {port}, "connections": 4, "warm_up_s": 0, "seconds": 1 {fields}}}"#);
    run(&LoadOptions::from_json(&json).unwrap()).await.unwrap()
}

/// A second of load against a server that sends this to every connection.
async fn against_bytes(reply: &'static [u8]) -> Report {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(reply).await;
        }
    };
    let loading = async {
        spawn_local(answering);
        load(port, r#", "events": 3"#).await
    };
    LocalSet::new().run_until(loading).await
}

#[tokio::test]
async fn whole_replies_are_counted_with_the_cpu_time_of_the_processes() {
    let own = std::process::id();
    let report = against_workers("", &format!(r#", "pids": [{own}]"#)).await;
    assert_eq!((report.errors, report.first_error), (0, None));
    assert!(report.requests > 100, "{}", report.requests);
    assert!((report.rps - report.requests as f64).abs() < report.rps / 5.0);
    assert!(report.latency_ms.p50 <= report.latency_ms.p99);
    let (cpu, share) = (
        report.cpu_us_per_request.unwrap(),
        report.cpu_share.unwrap(),
    );
    assert!(cpu > 0.0 && share < 1.5, "{cpu} {share}");
    assert!(report.peak_rss_mib.unwrap() > 1.0);
}

#[tokio::test]
async fn large_requests_arrive_whole() {
    let report = against_workers("", r#", "shared_bytes": 200000, "unique_bytes": 5000"#).await;
    assert!(report.requests > 10 && report.errors == 0, "{report:?}");
}

#[tokio::test]
async fn a_burst_has_every_event() {
    let report = against_workers("", r#", "stream": true, "events": 101"#).await;
    assert!(report.requests > 10 && report.errors == 0, "{report:?}");
    assert!(report.events_per_s >= report.rps * 100.0);
    assert!(report.cpu_us_per_request.is_none());
}

#[tokio::test]
async fn a_paced_stream_comes_at_its_pace() {
    let paced = r#", "chunks": 10, "interval_us": 20000"#;
    let report = against_workers(paced, r#", "stream": true, "events": 11"#).await;
    // Each of 4 connections has time for 5 streams at most.
    assert!((4..=20).contains(&report.requests), "{report:?}");
    assert_eq!(report.errors, 0);
    assert!(
        report.latency_ms.p50 >= 200.0 && report.ttft_ms.p50 >= 20.0,
        "{report:?}"
    );
}

#[tokio::test]
async fn a_stream_of_another_length_is_an_error() {
    let report = against_workers("", r#", "stream": true, "events": 99"#).await;
    assert_eq!(report.requests, 0);
    assert_eq!(
        report.first_error.as_deref(),
        Some("101 events instead of 99")
    );
}

#[tokio::test]
async fn replies_that_are_wrong_are_errors() {
    let refused = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno";
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nno";
    for (reply, error) in [
        (&refused[..], "status 503"),
        (cut, "closed before the end of a reply"),
        (b"", "closed before the end of a reply"),
        (b"220 smtp ready\r\n\r\n", "malformed reply"),
    ] {
        let report = against_bytes(reply).await;
        assert_eq!(report.requests, 0);
        assert!(report.errors > 0);
        assert_eq!(report.first_error.as_deref(), Some(error));
    }
}

#[tokio::test]
async fn a_run_ends_in_time_when_nothing_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let report = tokio::time::timeout(Duration::from_secs(10), load(port, ""))
        .await
        .unwrap();
    assert_eq!((report.requests, report.errors), (0, 0));
}

#[tokio::test]
async fn a_process_that_has_ended_fails_the_run() {
    let json = r#"{"port": 1, "pids": [5000000], "warm_up_s": 0}"#;
    let error = run(&LoadOptions::from_json(json).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "process 5000000 has ended");
}

#[tokio::test]
async fn a_taken_port_and_bad_options_are_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = WorkerOptions::from_json(&format!(r#"{{"ports": [{port}]}}"#)).unwrap();
    assert!(bind(&options).is_err());
    for json in [
        r#"{"ports": []}"#,
        r#"{"ports": [0], "chunks": 0}"#,
        r#"{"ports": [0], "host": "x"}"#,
    ] {
        assert!(WorkerOptions::from_json(json).is_err(), "{json}");
    }
}
