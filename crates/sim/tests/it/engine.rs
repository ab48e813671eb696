//! The engine behind the endpoints: cache, queue and aborts.

use serde_json::json;
use sim::SimOptions;

use testkit::posting;

use crate::support::{chat, connect, get, post, start, started, until};

/// Options of a worker whose prefill does not end within a test.
fn stuck() -> SimOptions {
    SimOptions {
        prefill_tokens_per_sec: 0.001,
        record_requests: 16,
        ..SimOptions::default()
    }
}

#[tokio::test]
async fn a_repeated_prompt_is_cached() {
    let worker = started();
    let body = chat(&"All work and no play. ".repeat(40), r#","max_tokens":1"#);
    let cached = async |body: &str| {
        let usage = post(&worker, "/v1/chat/completions", body).await.json()["usage"].clone();
        let cached = usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap();
        (cached, usage["prompt_tokens"].as_u64().unwrap())
    };
    assert_eq!(cached(&body).await.0, 0);
    let (hit, all) = cached(&body).await;
    assert!(hit > 0 && hit >= all - 16 && hit < all, "{hit} of {all}");
    assert_eq!(get(&worker, "/flush_cache").await.status, 200);
    assert_eq!(cached(&body).await.0, 0);
}

#[tokio::test]
async fn a_disconnect_during_prefill_frees_the_slot() {
    let worker = start(stuck());
    let mut client = connect(&worker).await;
    client
        .send(&posting("/v1/chat/completions", "", &chat("hi", "")))
        .await;
    until(&worker, |stats| stats.in_flight == 1).await;
    drop(client);
    until(&worker, |stats| {
        stats.aborted == 1 && stats.disconnects == 1 && stats.in_flight == 0
    })
    .await;
    assert_eq!(get(&worker, "/get_load").await.json()[0]["num_reqs"], 0);
    assert_eq!(json!(worker.recorded()[0].outcome), "disconnected");
}

#[tokio::test]
async fn a_disconnect_from_a_stream_or_the_queue_frees_the_slot() {
    let worker = start(SimOptions {
        max_running_requests: 1,
        decode_step_base_ms: 20.0,
        ..stuck()
    });
    worker.set_faults(sim::Faults::default()).unwrap();
    let mut first = connect(&worker).await;
    first
        .send(&posting(
            "/v1/chat/completions",
            "",
            &chat("hi", r#","stream":true"#),
        ))
        .await;
    until(&worker, |stats| stats.streams == 1).await;
    let mut second = connect(&worker).await;
    second
        .send(&posting(
            "/v1/chat/completions",
            "",
            &chat("hi", r#","stream":true"#),
        ))
        .await;
    until(&worker, |stats| stats.streams == 2).await;
    assert_eq!(
        get(&worker, "/get_load").await.json()[0]["num_waiting_reqs"],
        1
    );
    drop(second);
    until(&worker, |stats| stats.aborted == 1).await;
    assert_eq!(
        get(&worker, "/get_load").await.json()[0]["num_waiting_reqs"],
        0
    );
    drop(first);
    until(&worker, |stats| stats.aborted == 2 && stats.in_flight == 0).await;
}

#[tokio::test]
async fn a_full_queue_returns_503() {
    let worker = start(SimOptions {
        max_queued_requests: 1,
        ..stuck()
    });
    let mut clients = [connect(&worker).await, connect(&worker).await];
    for client in &mut clients {
        client
            .send(&posting("/generate", "", r#"{"text":"a"}"#))
            .await;
    }
    until(&worker, |stats| stats.in_flight == 2).await;
    let refused = post(&worker, "/generate", r#"{"text":"a"}"#).await;
    assert_eq!(refused.status, 503);
    assert_eq!(
        refused.json()["error"]["message"],
        "The request queue is full."
    );
    let refused = post(
        &worker,
        "/v1/chat/completions",
        &chat("a", r#","stream":true"#),
    )
    .await;
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (503, &json!(503))
    );
}

#[tokio::test]
async fn an_aborted_request_has_finish_reason_abort() {
    let worker = start(stuck());
    let mut client = connect(&worker).await;
    client
        .send(&posting("/generate", "", r#"{"text":"a","rid":"mine"}"#))
        .await;
    until(&worker, |stats| stats.in_flight == 1).await;
    assert_eq!(
        post(&worker, "/abort_request", r#"{"rid":"other"}"#)
            .await
            .status,
        200
    );
    assert_eq!(worker.stats().aborted, 0);
    assert_eq!(
        post(&worker, "/abort_request", r#"{"rid":"mine"}"#)
            .await
            .text(),
        ""
    );
    assert_eq!(
        client.reply().await.json()["meta_info"]["finish_reason"]["type"],
        "abort"
    );
    let mut client = connect(&worker).await;
    client
        .send(&posting(
            "/v1/chat/completions",
            "",
            &chat("a", r#","stream":true"#),
        ))
        .await;
    until(&worker, |stats| stats.in_flight == 1).await;
    post(&worker, "/abort_request", r#"{"abort_all":true}"#).await;
    assert!(
        client
            .reply()
            .await
            .text()
            .contains(r#""finish_reason":"abort""#)
    );
}

#[tokio::test]
async fn the_cache_is_not_flushed_while_a_request_runs() {
    let worker = start(stuck());
    let mut client = connect(&worker).await;
    client
        .send(&posting("/generate", "", r#"{"text":"a"}"#))
        .await;
    until(&worker, |stats| stats.in_flight == 1).await;
    assert_eq!(post(&worker, "/flush_cache", "").await.status, 400);
    drop(client);
    until(&worker, |stats| stats.in_flight == 0).await;
    assert!(
        post(&worker, "/flush_cache", "")
            .await
            .text()
            .starts_with("Cache flushed")
    );
}

#[tokio::test]
async fn ranks_have_caches_of_their_own() {
    let worker = start(SimOptions {
        dp_size: 2,
        page_size: 1,
        ..SimOptions::default()
    });
    let cached = async |rank: u32| {
        let body = format!(r#"{{"input_ids":[1,2,3,4],"data_parallel_rank":{rank}}}"#);
        post(&worker, "/generate", &body).await.json()["meta_info"]["cached_tokens"].clone()
    };
    assert_eq!(
        [
            cached(0).await,
            cached(1).await,
            cached(0).await,
            cached(1).await
        ],
        [0, 0, 3, 3]
    );
}

#[tokio::test]
async fn latency_is_that_of_the_model() {
    let worker = start(SimOptions {
        prefill_tokens_per_sec: 100.0,
        decode_step_base_ms: 10.0,
        ..SimOptions::default()
    });
    // 5 tokens at 100/s and 4 steps of 10 ms
    let body = r#"{"input_ids":[1,2,3,4,5],"sampling_params":{"max_new_tokens":5}}"#;
    let latency = post(&worker, "/generate", body).await.json()["meta_info"]["e2e_latency"]
        .as_f64()
        .unwrap();
    assert!(latency >= 0.09, "{latency}");
}
