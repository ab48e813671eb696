//! Comments in streams of events whose workers are silent.

use serde_json::Value;

use crate::support::{
    Client, Running, Step, Worker, chat_stream, json, ok, options, post, posting, start_with, until,
};

const COMMENT: &str = ": keep-alive\n\n";

/// A gateway that breaks silences of a second.
async fn start(workers: &[&Worker]) -> Running {
    let mut options = options(workers);
    options.sse_keepalive_secs = 1;
    start_with(options).await
}

fn head() -> Step {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    Step::Send(head.into())
}

fn chunk(text: &str) -> Step {
    Step::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes())
}

fn end() -> Step {
    Step::Send(b"0\r\n\r\n".to_vec())
}

/// What a client reads of a stream without comments.
fn without_comments(text: &str) -> String {
    text.replace(COMMENT, "")
}

#[tokio::test]
async fn stream_gets_comments_before_its_first_event_and_between_events_but_not_within_one() {
    let worker = Worker::scripted(|request| {
        if request.path() == "/generate" {
            return vec![Step::Hang];
        }
        vec![
            head(),
            Step::Wait,
            chunk("\u{feff}data: 1\n\ndata"),
            Step::Wait,
            chunk(": 2\n\n"),
            Step::Wait,
            chunk("data: [DONE]\n\n"),
            end(),
        ]
    })
    .await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    let begun = client.read_until(COMMENT).await;
    assert!(begun.starts_with("HTTP/1.1 200 OK\r\n"), "{begun}");
    assert!(begun.contains("content-type: text/event-stream"), "{begun}");
    assert!(begun.contains("cache-control: no-cache"), "{begun}");
    let mut reply = client.head().await.unwrap().unwrap();
    let count = |text: &str| text.matches(COMMENT).count();

    let mut text = String::new();
    while count(&text) < 2 {
        text += &next(&mut client).await;
    }
    worker.go_on();
    while !text.ends_with("data") {
        text += &next(&mut client).await;
    }
    let before = count(&text);
    // Another stream shows how time passes while this one is silent within an event.
    let mut other = Client::to(&gateway).await;
    other
        .send(&posting("/generate", "", r#"{"stream":true}"#))
        .await;
    other.head().await.unwrap();
    for _ in 0..2 {
        assert_eq!(next(&mut other).await, COMMENT);
    }
    worker.go_on();
    while !text.ends_with(": 2\n\n") {
        text += &next(&mut client).await;
    }
    assert_eq!(count(&text), before, "{text:?}");
    while count(&text) < before + 2 {
        text += &next(&mut client).await;
    }
    worker.go_on();
    client.body(&mut reply).await.unwrap();
    text += &reply.text();
    let events = "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n";
    assert_eq!(without_comments(&text), events);
    drop(other);
    assert!(reply.whole);
    until(|| async { gateway.in_flight().await == 0 }).await;
}

async fn next(client: &mut Client) -> String {
    let chunk = client.chunk().await.unwrap();
    String::from_utf8(chunk.unwrap()).unwrap()
}

#[tokio::test]
async fn failures_behind_the_gateways_head_are_retried_and_the_last_is_an_event() {
    let refusal = json(500, r#"{"error":{"message":"out of memory"}}"#);
    let slow = |steps: Vec<Step>| [Step::Wait].into_iter().chain(steps).collect::<Vec<_>>();
    let bad = Worker::doing(slow(refusal)).await;
    let good = Worker::doing(vec![head(), chunk("data: 1\n\n"), end()]).await;
    let gateway = start(&[&bad, &good]).await;
    for _ in 0..2 {
        let mut client = Client::to(&gateway).await;
        client.send(&chat_stream()).await;
        until(|| async { !bad.received().is_empty() || !good.received().is_empty() }).await;
        let mut reply = client.head().await.unwrap().unwrap();
        until(|| async {
            bad.go_on();
            good.received().len() == 1
        })
        .await;
        client.body(&mut reply).await.unwrap();
        assert_eq!(without_comments(&reply.text()), "data: 1\n\n");
        if bad.received().len() == 1 {
            return;
        }
    }
    unreachable!("one of two requests goes to the first worker");
}

/// The event that a stream ends with, behind the gateway's own head.
async fn last_event(path: &str, answer: Vec<Step>) -> (Running, String) {
    let steps = [Step::Wait].into_iter().chain(answer).collect();
    let worker = Worker::doing(steps).await;
    let mut options = options(&[&worker]);
    options.sse_keepalive_secs = 1;
    options.disable_retries = true;
    let gateway = start_with(options).await;
    let mut client = Client::to(&gateway).await;
    client.send(&posting(path, "", r#"{"stream":true}"#)).await;
    client.read_until(COMMENT).await;
    worker.go_on();
    let reply = client.reply().await;
    assert_eq!(reply.status, 200);
    assert!(reply.whole, "the event has said everything");
    until(|| async { gateway.in_flight().await == 0 }).await;
    (gateway, without_comments(&reply.text()))
}

#[tokio::test]
async fn refusal_of_a_worker_becomes_an_event_in_the_dialect_of_the_route() {
    let refusal = || json(400, r#"{"object":"error","message":"too long","code":400}"#);
    let (gateway, event) = last_event("/v1/chat/completions", refusal()).await;
    let data: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(data["error"]["message"], "too long");
    assert_eq!(data["error"]["type"], "invalid_request_error");
    assert_eq!(data["error"]["code"], "worker_refused");
    let counted = r#"error_code="worker_refused""#;
    until(|| async { gateway.metrics().await.contains(counted) }).await;

    let (_gateway, event) = last_event("/v1/messages", refusal()).await;
    let data = event.strip_prefix("event: error\ndata: ").unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["error"]["type"], "invalid_request_error");
    assert!(data["request_id"].is_string());

    let (_gateway, event) = last_event("/generate", vec![Step::Close]).await;
    assert!(event.contains("call_upstream_request_failed"), "{event}");
    let (_gateway, event) = last_event("/generate", ok()).await;
    assert!(event.contains("no stream of events"), "{event}");
}

#[tokio::test]
async fn client_that_leaves_during_the_silence_frees_the_worker_at_once() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.read_until(COMMENT).await;
    assert_eq!(gateway.in_flight().await, 1);
    drop(client);
    until(|| async { worker.disconnects() == 1 }).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
    let left = r#"error_code="client_closed_request""#;
    until(|| async { gateway.metrics().await.contains(left) }).await;
}

#[tokio::test]
async fn request_for_no_stream_waits_for_its_status() {
    let worker = Worker::scripted(|request| {
        let pause = Step::Pause(std::time::Duration::from_millis(1300));
        if request.path() == "/v1/embeddings" {
            return [pause].into_iter().chain(json(500, "{}")).collect();
        }
        [pause].into_iter().chain(ok()).collect()
    })
    .await;
    let mut options = options(&[&worker]);
    options.sse_keepalive_secs = 1;
    options.disable_retries = true;
    let gateway = start_with(options).await;
    let (whole, embeddings) = tokio::join!(
        post(&gateway, "/generate", r#"{"text":"stream"}"#),
        post(&gateway, "/v1/embeddings", r#"{"stream":true}"#),
    );
    assert_eq!(
        (whole.status, whole.text().as_str()),
        (200, r#"{"ok":true}"#)
    );
    assert!(whole.all("content-length").len() == 1);
    assert_eq!(embeddings.status, 500);
}
