//! The access log: a line per request.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Client, Running, Step, Worker, chat_stream, get, json as answer, options, posting, raw,
    start_with, until,
};

const USAGE: &str = r#"{"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":6}}}"#;

/// Time from the first byte of a stream to its last, at least.
const BETWEEN: Duration = Duration::from_millis(20);

/// A directory of the test's own.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("smg-it-{}", uuid::Uuid::new_v4());
        Self(std::env::temp_dir().join(name))
    }

    fn file(&self) -> String {
        self.0.join("access.log").to_str().unwrap().to_owned()
    }

    /// The lines of all files.
    fn lines(&self) -> Vec<Value> {
        let files = fs::read_dir(&self.0).unwrap();
        let texts = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
        let parsed = |text: String| -> Vec<Value> {
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        texts.flat_map(parsed).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A gateway with an access log.
async fn start(workers: &[&Worker], directory: &Directory) -> Running {
    let mut options = options(workers);
    options.access_log = Some(directory.file());
    options.api_key = Some("k".to_owned().into());
    options.request_timeout_secs = 5;
    start_with(options).await
}

/// Stops the gateway; the lines of requests with these ids, in this order.
async fn lines<const N: usize>(
    gateway: &Running,
    directory: &Directory,
    ids: [&str; N],
) -> [Value; N] {
    gateway.gateway.drain();
    let stopped = || async { gateway.gateway.wait(Duration::ZERO) };
    until(stopped).await;
    let lines = directory.lines();
    ids.map(|id| {
        let mut of_id = lines.iter().filter(|line| line["id"] == id);
        let line = of_id.next().cloned();
        assert!(line.is_some() && of_id.next().is_none(), "{id}: {lines:?}");
        line.unwrap()
    })
}

fn head_lines(id: &str) -> String {
    format!("authorization: Bearer k\r\nx-request-id: {id}\r\n")
}

/// A stream of events: the first, then these steps.
fn stream(then: &[Step]) -> Vec<Step> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let begun = Step::Send(format!("{head}9\r\ndata: 1\n\n\r\n").into_bytes());
    [&[begun], then].concat()
}

/// The end of a stream, with its counts.
fn counted_end() -> Step {
    let event = format!("data: {USAGE}\n\n");
    Step::Send(format!("{:x}\r\n{event}\r\n0\r\n\r\n", event.len()).into_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn line_says_who_asked_for_what_and_what_it_took() {
    let worker = Worker::scripted(|request| {
        if request.path() == "/v1/chat/completions" {
            stream(&[Step::Wait, counted_end()])
        } else {
            answer(200, USAGE)
        }
    })
    .await;
    let directory = Directory::new();
    let gateway = start(&[&worker], &directory).await;
    let request = posting("/generate", &head_lines("whole"), r#"{"text":"a"}"#);
    assert_eq!(raw(&gateway, &request).await.status, 200);
    let request = posting(
        "/v1/chat/completions",
        &head_lines("stream"),
        r#"{"stream":true}"#,
    );
    let mut client = Client::to(&gateway).await;
    client.send(&request).await;
    client.read_until("data: 1").await;
    tokio::time::sleep(BETWEEN).await;
    worker.go_on();
    client.read_until("\r\n0\r\n\r\n").await;
    let [mut whole, stream] = lines(&gateway, &directory, ["whole", "stream"]).await;
    assert!(whole["first_byte_ms"].as_f64().unwrap() <= whole["last_byte_ms"].as_f64().unwrap());
    for name in ["time", "first_byte_ms", "last_byte_ms"] {
        assert_ne!(whole[name].take(), Value::Null, "{name}");
    }
    let wanted = json!({
        "time": null, "id": "whole", "key": "api_key", "method": "POST", "route": "/generate",
        "status": 200, "model": "test-model", "worker": worker.url(), "policy": "round_robin",
        "stream": false, "first_byte_ms": null, "last_byte_ms": null,
        "prompt_tokens": 9, "cached_tokens": 6, "completion_tokens": 4,
    });
    assert_eq!(whole, wanted);
    assert_eq!(
        (&stream["stream"], &stream["completion_tokens"]),
        (&json!(true), &json!(4))
    );
    let took = |name| stream[name].as_f64().unwrap();
    let between = took("last_byte_ms") - took("first_byte_ms");
    assert!(between >= BETWEEN.as_secs_f64() * 1000.0, "{stream}");
}

#[tokio::test(flavor = "multi_thread")]
async fn line_of_a_failure_says_what_was_tried_and_how_it_ended() {
    let broken = Worker::doing(answer(500, "{}")).await;
    let cut = Worker::scripted(|request| match request.path() {
        "/v1/chat/completions" => stream(&[Step::Close]),
        "/v1/completions" => stream(&[Step::Hang]),
        _ => answer(200, "{}"),
    })
    .await;
    let directory = Directory::new();
    let gateway = start(&[&broken, &cut], &directory).await;
    // The first worker's turn comes first.
    let request = posting("/generate", &head_lines("retried"), "{}");
    assert_eq!(raw(&gateway, &request).await.status, 200);
    let target = format!("{}x-smg-target-worker: 1\r\n", head_lines("cut"));
    let mut client = Client::to(&gateway).await;
    client
        .send(&posting("/v1/chat/completions", &target, "{}"))
        .await;
    let _ = client.read_until("stream_error").await;
    let target = format!("{}x-smg-target-worker: 1\r\n", head_lines("gone"));
    let mut client = Client::to(&gateway).await;
    client
        .send(&posting("/v1/completions", &target, "{}"))
        .await;
    client.read_until("data: 1").await;
    drop(client);
    let request = posting("/generate", "x-request-id: keyless\r\n", "{}");
    assert_eq!(raw(&gateway, &request).await.status, 401);
    let request = posting("/nowhere?key=k", "x-request-id: lost\r\n", "{}");
    assert_eq!(raw(&gateway, &request).await.status, 404);
    let ids = ["retried", "cut", "gone", "keyless", "lost"];
    let [retried, cut_short, gone, keyless, lost] = lines(&gateway, &directory, ids).await;
    assert_eq!(retried["status"], 200);
    let failed = format!("500@{}", broken.url());
    assert_eq!(
        (&retried["failed_attempts"], &retried["worker"]),
        (&json!(failed), &json!(cut.url()))
    );
    assert_eq!(
        (&cut_short["status"], &cut_short["code"]),
        (&json!(200), &json!("stream_error"))
    );
    assert_eq!(
        cut_short["failed_attempts"],
        format!("truncated@{}", cut.url())
    );
    assert_eq!(
        (&gone["status"], &gone["code"]),
        (&json!(499), &json!("client_closed_request"))
    );
    assert_eq!(gone["worker"], cut.url());
    assert_eq!(
        (&keyless["status"], &keyless["key"]),
        (&json!(401), &json!(""))
    );
    assert_eq!(keyless["code"], "invalid_api_key");
    assert_eq!(
        (&lost["status"], &lost["route"]),
        (&json!(404), &json!("other"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_before_any_reply_has_a_line() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let directory = Directory::new();
    let gateway = start(&[&worker], &directory).await;
    let client = Client::asking(&gateway, &head_lines("gone")).await;
    until(|| async { worker.received().len() == 1 }).await;
    drop(client);
    until(|| async { worker.disconnects() == 1 }).await;
    let [gone] = lines(&gateway, &directory, ["gone"]).await;
    assert_eq!(
        (&gone["status"], &gone["worker"]),
        (&json!(499), &json!(worker.url()))
    );
    assert!(gone.get("first_byte_ms").is_none(), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_that_began_with_a_comment_is_logged_to_its_end() {
    let worker = Worker::doing(
        [
            vec![Step::Pause(Duration::from_millis(1200))],
            stream(&[counted_end()]),
        ]
        .concat(),
    )
    .await;
    let directory = Directory::new();
    let mut options = options(&[&worker]);
    options.access_log = Some(directory.file());
    options.sse_keepalive_secs = 1;
    let gateway = start_with(options).await;
    let mut client = Client::to(&gateway).await;
    let request = String::from_utf8(chat_stream()).unwrap();
    let request = request.replacen("\r\n", "\r\nx-request-id: kept\r\n", 1);
    client.send(request.as_bytes()).await;
    client.reply().await;
    let [kept] = lines(&gateway, &directory, ["kept"]).await;
    assert_eq!(
        (&kept["worker"], &kept["completion_tokens"]),
        (&json!(worker.url()), &json!(4))
    );
    let first_byte = kept["first_byte_ms"].as_f64().unwrap();
    assert!(first_byte > 1100.0, "the worker's first byte: {kept}");
}

#[test]
fn access_log_that_cannot_be_written_is_named_in_the_error() {
    let mut options = options(&[]);
    options.access_log = Some("/proc/self/access.log".into());
    let error = gateway::Gateway::start(&options).unwrap_err();
    assert!(error.to_string().contains("access_log"), "{error}");
    options.access_log = Some("/".into());
    let error = gateway::Gateway::start(&options).unwrap_err();
    assert!(error.to_string().contains("must name a file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_lines_are_on_the_metrics_page() {
    let directory = Directory::new();
    let gateway = start(&[], &directory).await;
    assert_eq!(get(&gateway, "/liveness").await.status, 200);
    let page = gateway.metrics().await;
    assert!(
        page.contains("smg_log_dropped_lines{log=\"access\"} 0\n"),
        "{page}"
    );
}
