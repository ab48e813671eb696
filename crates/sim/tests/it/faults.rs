//! Every fault has its documented effect.

use std::time::Duration;

use serde_json::json;
use sim::{Faults, SimWorker};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use testkit::{Client, posting, request};

use crate::support::{chat, connect, get, post, started, until};

fn faulty(faults: Faults) -> SimWorker {
    let worker = started();
    worker.set_faults(faults).unwrap();
    worker
}

/// A connection with a chat request whose response is unread.
async fn send_chat(worker: &SimWorker, rest: &str) -> Client {
    let mut client = connect(worker).await;
    client
        .send(&posting("/v1/chat/completions", "", &chat("hi", rest)))
        .await;
    client
}

const STREAM: &str = r#","stream":true,"max_tokens":20"#;

#[tokio::test]
async fn a_status_ends_after_its_count() {
    let worker = faulty(Faults {
        status: Some(429),
        status_count: 2,
        retry_after: Some(7),
        ..Faults::default()
    });
    let refused = send_chat(&worker, "").await.reply().await;
    assert_eq!(
        (refused.status, refused.all("retry-after")),
        (429, vec!["7"])
    );
    assert_eq!(refused.json()["object"], "error");
    let refused = post(&worker, "/generate", r#"{"text":"a"}"#).await;
    assert_eq!(refused.status, 429);
    assert!(refused.json()["error"]["message"].is_string());
    assert_eq!(send_chat(&worker, "").await.reply().await.status, 200);
    assert_eq!(worker.stats().faulted, 2);
}

#[tokio::test]
async fn a_stream_can_begin_with_a_refusal() {
    let worker = faulty(Faults {
        stream_status: Some(503),
        ..Faults::default()
    });
    let stream = send_chat(&worker, STREAM).await.reply().await;
    assert_eq!(stream.status, 200);
    assert!(stream.text().starts_with("data: {\"error\":"), "{stream:?}");
    let native = post(&worker, "/generate", r#"{"text":"a","stream":true}"#).await;
    assert!(native.text().contains(r#""status_code":503"#), "{native:?}");
    assert_eq!(send_chat(&worker, "").await.reply().await.status, 503);
}

#[tokio::test]
async fn faults_can_be_of_requests_with_a_text_alone() {
    let worker = faulty(Faults {
        close_before_headers: true,
        only_text: Some("poison".to_owned()),
        ..Faults::default()
    });
    assert_eq!(send_chat(&worker, "").await.reply().await.status, 200);
    let mut client = connect(&worker).await;
    client
        .send(&posting("/generate", "", r#"{"text":"poison"}"#))
        .await;
    assert!(client.head().await.unwrap().is_none());
    assert_eq!(worker.stats().faulted, 1);
}

#[tokio::test]
async fn health_can_fail_or_hang() {
    let worker = faulty(Faults {
        health_status: Some(503),
        ..Faults::default()
    });
    assert_eq!(get(&worker, "/health").await.status, 503);
    assert_eq!(send_chat(&worker, "").await.reply().await.status, 200);
    worker
        .set_faults(Faults {
            health_hang: true,
            ..Faults::default()
        })
        .unwrap();
    let mut client = connect(&worker).await;
    client.send(&request("GET /health", "", "")).await;
    assert_eq!(
        send_chat(&worker, "").await.reply().await.status,
        200,
        "while health hangs"
    );
    worker.set_faults(Faults::default()).unwrap();
    assert_eq!(get(&worker, "/health").await.status, 200);
}

#[tokio::test]
async fn the_connection_can_close_before_the_response() {
    let worker = faulty(Faults {
        close_before_headers: true,
        count: 1,
        ..Faults::default()
    });
    assert!(send_chat(&worker, "").await.head().await.unwrap().is_none());
    until(&worker, |stats| {
        stats.disconnects == 1 && stats.in_flight == 0
    })
    .await;
    assert_eq!(
        send_chat(&worker, "").await.reply().await.status,
        200,
        "counted once"
    );
}

#[tokio::test]
async fn garbage_headers_are_not_http() {
    let worker = faulty(Faults {
        garbage_headers: true,
        ..Faults::default()
    });
    let mut client = send_chat(&worker, "").await;
    assert!(client.head().await.is_err());
    assert!(client.closed().await);
}

#[tokio::test]
async fn the_connection_can_close_within_the_headers() {
    let worker = faulty(Faults {
        close_mid_headers: true,
        ..Faults::default()
    });
    assert!(send_chat(&worker, "").await.head().await.unwrap().is_none());
    until(&worker, |stats| stats.connections_open == 0).await;
}

#[tokio::test]
async fn the_content_length_can_be_invalid() {
    let worker = faulty(Faults {
        bad_content_length: Some("banana".to_owned()),
        ..Faults::default()
    });
    let mut client = send_chat(&worker, "").await;
    let head = client.head().await.unwrap().unwrap();
    assert_eq!(head.all("content-length"), ["banana"]);
}

#[tokio::test]
async fn a_body_can_be_cut_off() {
    let worker = faulty(Faults {
        close_mid_body: Some(30),
        ..Faults::default()
    });
    for rest in ["", STREAM] {
        let reply = send_chat(&worker, rest).await.reply().await;
        assert_eq!(
            (reply.status, reply.body.len(), reply.whole),
            (200, 30, false),
            "{rest}"
        );
    }
    worker
        .set_faults(Faults {
            close_mid_body: Some(0),
            ..Faults::default()
        })
        .unwrap();
    let reply = send_chat(&worker, STREAM).await.reply().await;
    assert_eq!(
        (reply.status, reply.body.len(), reply.whole),
        (200, 0, false)
    );
    until(&worker, |stats| stats.disconnects == 3).await;
}

#[tokio::test]
async fn a_body_can_stall_until_the_client_leaves() {
    let worker = faulty(Faults {
        stall_mid_body: Some(10),
        ..Faults::default()
    });
    let mut client = send_chat(&worker, STREAM).await;
    assert_eq!(client.head().await.unwrap().unwrap().status, 200);
    assert_eq!(client.chunk().await.unwrap().unwrap().len(), 10);
    assert_eq!(worker.stats().in_flight, 1);
    drop(client);
    until(&worker, |stats| {
        stats.in_flight == 0 && stats.disconnects == 1
    })
    .await;
}

#[tokio::test]
async fn two_cookies_are_separate_headers() {
    let worker = faulty(Faults {
        duplicate_set_cookie: true,
        ..Faults::default()
    });
    assert_eq!(
        send_chat(&worker, "")
            .await
            .reply()
            .await
            .all("set-cookie")
            .len(),
        2
    );
}

#[tokio::test]
async fn a_huge_body_is_valid_json_of_that_size() {
    let worker = faulty(Faults {
        huge_body_bytes: 300_000,
        ..Faults::default()
    });
    let reply = send_chat(&worker, "").await.reply().await;
    assert_eq!((reply.body.len(), reply.whole), (300_000, true));
    assert!(reply.json()["text"].is_string());
}

#[tokio::test]
async fn delays_hold_back_the_head_and_each_chunk() {
    let worker = faulty(Faults {
        delay_first_byte_ms: 30,
        chunk_delay_ms: 5,
        ..Faults::default()
    });
    let start = tokio::time::Instant::now();
    let mut client = send_chat(&worker, STREAM).await;
    let mut reply = client.head().await.unwrap().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
    client.body(&mut reply).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30 + 20 * 5));
}

#[tokio::test]
async fn new_connections_can_be_reset() {
    let worker = started();
    let mut before = connect(&worker).await;
    before
        .send(&posting(
            "/sim/faults",
            "",
            r#"{"refuse_connections":true}"#,
        ))
        .await;
    assert_eq!(before.reply().await.status, 200);
    // The reset may come before the client knows that it is connected.
    if let Ok(mut stream) = TcpStream::connect(worker.addr()).await {
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    }
    before.send(&posting("/sim/faults", "", "{}")).await;
    before.reply().await;
    assert_eq!(get(&worker, "/health").await.status, 200);
}

#[tokio::test]
async fn the_connection_can_close_after_a_stream_without_notice() {
    let worker = faulty(Faults {
        close_after_stream: true,
        ..Faults::default()
    });
    let mut client = send_chat(&worker, STREAM).await;
    let reply = client.reply().await;
    assert!(reply.whole && reply.all("connection").is_empty());
    assert!(client.closed().await);
    let mut client = send_chat(&worker, "").await;
    client.reply().await;
    client
        .send(&posting("/v1/chat/completions", "", &chat("hi", "")))
        .await;
    assert_eq!(
        client.reply().await.status,
        200,
        "whole responses keep the connection"
    );
}

#[tokio::test]
async fn faults_are_read_and_set_over_http() {
    let worker = started();
    assert_eq!(
        get(&worker, "/sim/faults").await.json(),
        json!(Faults::default())
    );
    let set = post(&worker, "/sim/faults", r#"{"status":500,"for_ms":3600000}"#).await;
    assert_eq!(set.json()["status"], 500);
    assert_eq!(send_chat(&worker, "").await.reply().await.status, 500);
    for wrong in [
        r#"{"status":99}"#,
        r#"{"fault_rate":2}"#,
        r#"{"typo":1}"#,
        "nonsense",
    ] {
        assert_eq!(
            post(&worker, "/sim/faults", wrong).await.status,
            400,
            "{wrong}"
        );
    }
    assert_eq!(
        send_chat(&worker, "").await.reply().await.status,
        500,
        "a mistake changes nothing"
    );
    post(&worker, "/sim/faults", "{}").await;
    assert_eq!(send_chat(&worker, "").await.reply().await.status, 200);
}

#[tokio::test]
async fn faults_end_after_for_ms() {
    let worker = faulty(Faults {
        status: Some(500),
        for_ms: 1,
        ..Faults::default()
    });
    while send_chat(&worker, "").await.reply().await.status == 500 {}
    assert_eq!(
        get(&worker, "/sim/faults").await.json(),
        json!(Faults::default())
    );
}
