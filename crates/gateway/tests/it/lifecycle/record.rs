//! The recording: a line per inference request, in Mooncake's format and more.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use gateway::Options;
use serde_json::{Value, json};

use crate::support::{
    Client, Running, Step, Worker, get, json as answer, options, posting, raw, start_with, until,
};

const USAGE: &str = r#"{"usage":{"prompt_tokens":900,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":6}}}"#;

/// A directory of the test's own.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("smg-it-{}", uuid::Uuid::new_v4());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> String {
        self.0.join("trace.jsonl").to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn recording(workers: &[&Worker], directory: &Directory) -> Options {
    let mut options = options(workers);
    options.record = Some(directory.file());
    options
}

/// Stops the gateway; the text of the file.
async fn stopped(gateway: &Running, directory: &Directory) -> String {
    gateway.gateway.drain();
    let stopped = || async { gateway.gateway.wait(Duration::ZERO) };
    until(stopped).await;
    fs::read_to_string(directory.file()).unwrap()
}

fn parsed(text: &str) -> Vec<Value> {
    let parsed = |line| serde_json::from_str(line).unwrap();
    text.lines().map(parsed).collect()
}

/// A chat whose prompt is so long, and ends so.
fn chat(length: usize, end: &str) -> Vec<u8> {
    let content = format!("{}{end}", "secret ".repeat(length / 7));
    let body = json!({"messages": [{"role": "user", "content": content}], "max_tokens": 32});
    let head = "x-smg-routing-key: secret-session\r\n";
    posting("/v1/chat/completions", head, &body.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn line_has_lengths_hashes_and_outcome_and_not_a_word_of_the_prompt() {
    let worker = Worker::doing(answer(200, USAGE)).await;
    let directory = Directory::new();
    let gateway = start_with(recording(&[&worker], &directory)).await;
    for end in ["one", "two", "one"] {
        assert_eq!(raw(&gateway, &chat(4200, end)).await.status, 200);
    }
    // No inference.
    assert_eq!(get(&gateway, "/liveness").await.status, 200);
    let text = stopped(&gateway, &directory).await;
    assert!(
        !text.contains("secret") && !text.contains(&worker.url()),
        "{text}"
    );
    let lines = parsed(&text);
    assert_eq!(lines.len(), 3);
    for line in &lines {
        let times = ["timestamp", "ttft_ms", "total_ms"].map(|name| line[name].as_f64());
        assert!(times.iter().all(Option::is_some), "{line}");
        let wanted = json!([
            "/v1/chat/completions",
            "test-model",
            false,
            900,
            6,
            4,
            32,
            200,
            0,
            false,
            0,
            "round_robin"
        ]);
        let names = [
            "endpoint",
            "model",
            "stream",
            "prompt_tokens",
            "cached_tokens",
            "output_length",
            "max_tokens",
            "status",
            "failed_attempts",
            "cancelled",
            "worker",
            "policy",
        ];
        let found: Vec<_> = names.iter().map(|name| line[*name].clone()).collect();
        assert_eq!(json!(found), wanted);
        // Three blocks of 2048 bytes, to which the counted 900 tokens do not fit.
        assert_eq!(line["input_length"], 1025);
        assert_eq!(line["session"], lines[0]["session"]);
    }
    assert_one_of_three_ends_otherwise(&lines);
    assert_eq!(lines[0]["recording"]["version"], 1);
}

/// Lanes write when they please: two prompts were the same, a third differed in its last block.
fn assert_one_of_three_ends_otherwise(lines: &[Value]) {
    let mut ids = lines
        .iter()
        .map(|line| line["hash_ids"].as_array().unwrap());
    let (first, second, third) = (
        ids.next().unwrap(),
        ids.next().unwrap(),
        ids.next().unwrap(),
    );
    for one in [first, second, third] {
        assert_eq!((one.len(), &one[..2]), (3, &first[..2]));
    }
    let pairs = [
        first[2] == second[2],
        second[2] == third[2],
        first[2] == third[2],
    ];
    assert_eq!(pairs.iter().filter(|same| **same).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_attempts_refusals_and_clients_that_leave_are_recorded() {
    let broken = Worker::doing(answer(500, "{}")).await;
    let slow = Worker::scripted(|request| match request.path() {
        "/v1/completions" => vec![Step::Hang],
        _ => answer(200, USAGE),
    })
    .await;
    let directory = Directory::new();
    let mut options = recording(&[&broken, &slow], &directory);
    options.api_key = Some("k".to_owned().into());
    let gateway = start_with(options).await;
    let key = "authorization: Bearer k\r\n";
    // The first worker's turn comes first.
    let request = posting("/generate", key, r#"{"text":"a"}"#);
    assert_eq!(raw(&gateway, &request).await.status, 200);
    let request = posting("/generate", "", r#"{"text":"a"}"#);
    assert_eq!(raw(&gateway, &request).await.status, 401);
    let mut client = Client::to(&gateway).await;
    let aimed = format!("{key}x-smg-target-worker: 1\r\n");
    let request = posting("/v1/completions", &aimed, r#"{"prompt":"abc"}"#);
    client.send(&request).await;
    until(|| async { slow.received().len() == 2 }).await;
    drop(client);
    until(|| async { slow.disconnects() == 1 }).await;
    let lines = parsed(&stopped(&gateway, &directory).await);
    let of = |status: u16| lines.iter().find(|line| line["status"] == status).unwrap();
    assert_eq!(lines.len(), 3);
    let retried = of(200);
    assert_eq!(
        (&retried["failed_attempts"], &retried["worker"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(retried["tenant"], of(499)["tenant"]);
    let (refused, gone) = (of(401), of(499));
    assert_eq!(
        (&refused["input_length"], &refused["hash_ids"]),
        (&json!(0), &json!([]))
    );
    assert_eq!(
        (&gone["cancelled"], &gone["output_length"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(gone["hash_ids"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_without_counts_is_recorded_with_its_events() {
    let worker = Worker::scripted(|_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        let events = "data: {}\n\n".repeat(3);
        let text = format!("{head}{events}data: [DONE]\n\n");
        vec![Step::Send(text.into_bytes()), Step::Close]
    })
    .await;
    let directory = Directory::new();
    let mut options = recording(&[&worker], &directory);
    options.record_block_tokens = 16;
    let gateway = start_with(options).await;
    let body = format!(r#"{{"stream":true,"prompt":"{}"}}"#, "x".repeat(200));
    let mut client = Client::to(&gateway).await;
    client.send(&posting("/v1/completions", "", &body)).await;
    client.read_until("[DONE]").await;
    let lines = parsed(&stopped(&gateway, &directory).await);
    let line = &lines[0];
    assert_eq!(
        (&line["stream"], &line["output_length"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(line["recording"]["block_bytes"], 64);
    assert_eq!(line["hash_ids"].as_array().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recorded_without_the_option_and_metrics_count_what_is() {
    let worker = Worker::doing(answer(200, USAGE)).await;
    let directory = Directory::new();
    let gateway = start_with(recording(&[&worker], &directory)).await;
    assert_eq!(raw(&gateway, &chat(100, "")).await.status, 200);
    let line = "smg_recorded_requests_total{result=\"written\"} 1\n";
    until(|| async { gateway.metrics().await.contains(line) }).await;
    let plain = start_with(options(&[&worker])).await;
    assert_eq!(raw(&plain, &chat(100, "")).await.status, 200);
    assert!(
        !plain
            .metrics()
            .await
            .contains("smg_recorded_requests_total{")
    );
}

#[test]
fn file_that_cannot_be_written_is_named_in_the_error() {
    let mut options = options(&[]);
    options.record = Some("/proc/self/trace.jsonl".into());
    let error = gateway::Gateway::start(&options).unwrap_err();
    assert!(error.to_string().contains("record"), "{error}");
    options.record = Some("/".into());
    let error = gateway::Gateway::start(&options).unwrap_err();
    assert!(error.to_string().contains("must name a file"), "{error}");
}
