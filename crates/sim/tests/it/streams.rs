//! Streams have the framing and events of their API.

use serde_json::{Value, json};
use sim::SimOptions;

use testkit::{Reply, posting};

use crate::support::{chat, connect, events, post, start, started};

fn parsed(reply: &Reply) -> Vec<Value> {
    assert_eq!(
        reply.all("content-type"),
        ["text/event-stream; charset=utf-8"]
    );
    assert!(reply.whole);
    let events = events(reply);
    let events = events.iter().filter(|event| **event != "[DONE]");
    events
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

#[tokio::test]
async fn a_chat_stream_opens_with_the_role_and_ends_with_the_reason() {
    let worker = started();
    let rest = r#","max_tokens":4,"stream":true,"stream_options":{"include_usage":true}"#;
    let reply = post(&worker, "/v1/chat/completions", &chat("hi", rest)).await;
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    let chunks = parsed(&reply);
    assert_eq!(chunks.len(), 1 + 4 + 1 + 1);
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!(chunks[5]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[6]["choices"], json!([]));
    assert_eq!(chunks[6]["usage"]["completion_tokens"], 4);
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));

    let streamed: String = chunks[1..5]
        .iter()
        .map(|c| c["choices"][0]["delta"]["content"].as_str().unwrap())
        .collect();
    let whole = post(
        &worker,
        "/v1/chat/completions",
        &chat("hi", r#","max_tokens":4"#),
    )
    .await
    .json();
    assert_eq!(whole["choices"][0]["message"]["content"], streamed);
}

#[tokio::test]
async fn a_completion_stream_interleaves_its_choices() {
    let worker = started();
    let body = r#"{"prompt":["a","b"],"max_tokens":3,"stream":true}"#;
    let chunks = parsed(&post(&worker, "/v1/completions", body).await);
    let of = |index| {
        chunks
            .iter()
            .filter(|c| c["choices"][0]["index"] == index)
            .count()
    };
    assert_eq!((of(0), of(1)), (4, 4));
}

#[tokio::test]
async fn a_generate_stream_is_cumulative() {
    let worker = started();
    let body = r#"{"text":"a","sampling_params":{"max_new_tokens":3},"stream":true}"#;
    let frames = parsed(&post(&worker, "/generate", body).await);
    assert_eq!(frames.len(), 3);
    let text = |at: usize| frames[at]["text"].as_str().unwrap();
    assert!(text(1).starts_with(text(0)) && text(2).starts_with(text(1)));
    assert_eq!(frames[1]["meta_info"]["finish_reason"], Value::Null);
    assert_eq!(frames[2]["meta_info"]["finish_reason"]["type"], "length");
    assert_eq!(frames[2]["output_ids"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn frames_of_a_batch_carry_their_index() {
    let worker = started();
    let body = r#"{"text":["a","b"],"sampling_params":{"max_new_tokens":2},"stream":true}"#;
    let frames = parsed(&post(&worker, "/generate", body).await);
    assert_eq!(frames.iter().filter(|frame| frame["index"] == 1).count(), 2);
}

#[tokio::test]
async fn responses_and_messages_name_their_events() {
    let worker = started();
    let reply = post(&worker, "/v1/responses", r#"{"input":"a","stream":true}"#).await;
    assert!(reply.text().starts_with("event: response.created\ndata: "));
    let events = parsed(&reply);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["sequence_number"], events.len() - 1);

    let body = r#"{"max_tokens":2,"stream":true,"messages":[{"role":"user","content":"a"}]}"#;
    let kinds: Vec<Value> = parsed(&post(&worker, "/v1/messages", body).await)
        .iter()
        .map(|e| e["type"].clone())
        .collect();
    assert_eq!(
        kinds,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
}

#[tokio::test]
async fn tokens_are_sent_as_they_are_generated() {
    let worker = start(SimOptions {
        decode_step_base_ms: 50.0,
        ..SimOptions::default()
    });
    let mut client = connect(&worker).await;
    client
        .send(&posting(
            "/v1/completions",
            "",
            r#"{"prompt":"a","max_tokens":1000,"stream":true}"#,
        ))
        .await;
    client.head().await.unwrap().unwrap();
    for _ in 0..3 {
        let chunk = client.chunk().await.unwrap().unwrap();
        let events = String::from_utf8(chunk).unwrap();
        assert_eq!(events.lines().count(), 2, "one event each");
    }
    assert_eq!(worker.stats().in_flight, 1);
}
