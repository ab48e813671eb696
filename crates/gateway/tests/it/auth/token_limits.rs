//! Tokens per minute of clients' keys.

use std::fs;

use gateway::Options;
use serde_json::json;

use super::support::{TempDir, bearer};
use crate::support::{
    Client, Reply, Running, Step, Worker, json as answer, options, posting, raw, start_with, until,
};

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

/// What a worker answers, by path.
fn script(path: &str) -> Vec<Step> {
    let event = b"data: {\"choices\":[]}\n\n".repeat(300);
    let done = b"data: [DONE]\n\n".to_vec();
    match path {
        "/v1/chat/completions" => {
            let usage = b"data: {\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":600}}\n\n";
            vec![
                Step::Send([STREAM.as_bytes(), usage, &done].concat()),
                Step::Close,
            ]
        }
        "/v1/completions" => {
            let head = STREAM.as_bytes();
            vec![Step::Send([head, &event, &done].concat()), Step::Close]
        }
        "/v1/messages" => vec![Step::Send([STREAM.as_bytes(), &event].concat()), Step::Hang],
        "/generate" => {
            let one = r#"{"text":"t","meta_info":{"prompt_tokens":1,"completion_tokens":150}}"#;
            answer(200, &format!("[{one}, {one}]"))
        }
        "/encode" => answer(500, r#"{"usage":{"prompt_tokens":500}}"#),
        "/v1/tokenize" => answer(200, r#"{"usage":{"prompt_tokens":500}}"#),
        _ => answer(
            200,
            r#"{"usage":{"prompt_tokens":100,"completion_tokens":100}}"#,
        ),
    }
}

/// A gateway with keys that may have so many tokens per minute.
async fn stage(dir: &TempDir, worker: &Worker, limits: &[u32]) -> Running {
    let path = dir.path("keys.json");
    let keys = limits.iter().enumerate();
    let keys: serde_json::Value = keys
        .map(|(at, limit)| {
            let key = format!("k{at}");
            json!({"name": key, "key": key, "tpm_limit": limit})
        })
        .collect();
    fs::write(&path, keys.to_string()).unwrap();
    start_with(Options {
        api_keys_file: Some(path.to_str().unwrap().to_owned()),
        disable_retries: true,
        ..options(&[worker])
    })
    .await
}

async fn ask(gateway: &Running, key: &str, path: &str, body: &str) -> Reply {
    raw(gateway, &posting(path, &bearer(key), body)).await
}

/// Seconds that a key beyond its limit has to wait.
async fn wait_of(gateway: &Running, key: &str) -> u64 {
    let reply = ask(gateway, key, "/v1/embeddings", "{}").await;
    assert_eq!((reply.status, &*reply.code()), (429, "key_limit_reached"));
    assert!(reply.text().contains("tpm_limit"), "{reply:?}");
    reply.header("retry-after").parse().unwrap()
}

#[tokio::test]
async fn tokens_of_every_kind_of_reply_count_once_they_are_known() {
    let dir = TempDir::new("tokens");
    let worker = Worker::scripted(|request| script(request.path())).await;
    // One token per second, and 60 at once.
    let gateway = stage(&dir, &worker, &[60; 4]).await;
    for (key, path, body, owed) in [
        ("k0", "/v1/chat/completions", r#"{"stream":true}"#, 610),
        // An event is a token where the reply does not count: 300, and the last event.
        ("k1", "/v1/completions", r#"{"stream":true}"#, 301),
        ("k2", "/generate", r#"{"text":["a","b"]}"#, 300),
        ("k3", "/v1/score", "{}", 200),
    ] {
        assert_eq!(ask(&gateway, key, path, body).await.status, 200, "{path}");
        let wait = wait_of(&gateway, key).await;
        assert!((owed - 70..=owed - 55).contains(&wait), "{path}: {wait}");
    }
    let page = gateway.metrics().await;
    let line = "smg_api_key_refused_total{key=\"k0\",limit=\"tpm_limit\"} 1\n";
    assert!(page.contains(line), "{page}");
}

#[tokio::test]
async fn prompt_counts_before_it_is_answered_and_is_given_back_when_it_is_not() {
    let dir = TempDir::new("prompt");
    let worker = Worker::scripted(|request| match request.path() {
        "/v1/score" => [vec![Step::Wait], answer(500, "{}")].concat(),
        path => script(path),
    })
    .await;
    let gateway = stage(&dir, &worker, &[60]).await;
    let long = format!(r#"{{"query":"{}","text":"{0}"}}"#, "word ".repeat(400));
    // Refused by the worker, or asking no model.
    for (path, status) in [("/encode", 500), ("/encode", 500), ("/v1/tokenize", 200)] {
        assert_eq!(ask(&gateway, "k0", path, &long).await.status, status);
    }
    let mut waiting = Client::to(&gateway).await;
    waiting
        .send(&posting("/v1/score", &bearer("k0"), &long))
        .await;
    until(|| async { ask(&gateway, "k0", "/v1/tokenize", "{}").await.status == 429 }).await;
    let waits = || worker.received().iter().any(|it| it.path() == "/v1/score");
    until(|| async { waits() }).await;
    worker.go_on();
    assert_eq!(waiting.reply().await.status, 500);
    assert_eq!(ask(&gateway, "k0", "/v1/tokenize", "{}").await.status, 200);
}

#[tokio::test]
async fn client_that_leaves_amid_a_stream_keeps_what_has_come() {
    let dir = TempDir::new("leaves");
    let worker = Worker::scripted(|request| script(request.path())).await;
    let gateway = stage(&dir, &worker, &[60]).await;
    let mut client = Client::to(&gateway).await;
    let body = r#"{"stream":true,"messages":[]}"#;
    client
        .send(&posting("/v1/messages", &bearer("k0"), body))
        .await;
    client.read_until("data: ").await;
    drop(client);
    until(|| async { ask(&gateway, "k0", "/v1/tokenize", "{}").await.status == 429 }).await;
    let wait = wait_of(&gateway, "k0").await;
    assert!((100..=250).contains(&wait), "{wait}");
}
