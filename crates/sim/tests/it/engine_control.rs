//! What trainers and operators ask of an engine.

use std::time::Duration;

use serde_json::{Value, json};
use sim::{SimOptions, SimWorker};
use testkit::{Reply, posting, request};
use tokio::time::{Instant, timeout};

use crate::support::{chat, connect, events, get, post, start, started, until};

const PROMPT: &str =
    "A long prompt that fills pages of the cache, sentence after sentence, again and again.";

/// A worker that takes 5 ms for a token.
fn steady() -> SimWorker {
    start(SimOptions {
        decode_step_base_ms: 5.0,
        ..SimOptions::default()
    })
}

async fn ask(worker: &SimWorker, path: &str, body: Value) -> Reply {
    post(worker, path, &body.to_string()).await
}

/// Asks for something that has to be done.
async fn order(worker: &SimWorker, path: &str, body: Value) -> Value {
    let reply = ask(worker, path, body).await;
    assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    if reply.body.is_empty() {
        return Value::Null;
    }
    reply.json()
}

async fn generate(worker: &SimWorker, fields: Value) -> Reply {
    let mut body = json!({"text": PROMPT, "sampling_params": {"max_new_tokens": 2}});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    ask(worker, "/generate", body).await
}

/// Cached tokens of a prompt under these fields.
async fn cached(worker: &SimWorker, fields: Value) -> u64 {
    let reply = generate(worker, fields).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["meta_info"]["cached_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn paused_worker_is_healthy_not_ready_and_answers_once_it_goes_on() {
    let worker = started();
    assert_eq!(get(&worker, "/ready").await.status, 200);
    let paused = order(&worker, "/pause_generation", json!({})).await;
    assert_eq!(paused["status"], "ok");
    assert_eq!(get(&worker, "/ready").await.status, 503);
    assert_eq!(get(&worker, "/health").await.status, 200);
    let mut client = connect(&worker).await;
    client
        .send(&posting("/v1/chat/completions", "", &chat("hi", "")))
        .await;
    let early = timeout(Duration::from_millis(100), client.reply()).await;
    assert!(early.is_err(), "nothing is generated");
    order(&worker, "/continue_generation", json!({})).await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!(get(&worker, "/ready").await.status, 200);
}

#[tokio::test]
async fn pause_aborts_what_runs_or_has_it_stand_still_as_asked() {
    let worker = steady();
    let body = json!({"text": "x", "sampling_params": {"max_new_tokens": 100_000}, "stream": true});
    let mut client = connect(&worker).await;
    client
        .send(&posting("/generate", "", &body.to_string()))
        .await;
    client.head().await.unwrap().unwrap();
    client.chunk().await.unwrap().unwrap();
    order(&worker, "/pause_generation", json!({"mode": "in_place"})).await;
    // What was made before the pause is still on its way.
    while let Ok(chunk) = timeout(Duration::from_millis(100), client.chunk()).await {
        assert!(chunk.unwrap().is_some());
    }
    assert_eq!(post(&worker, "/flush_cache", "").await.status, 400);
    order(&worker, "/continue_generation", json!({})).await;
    client.chunk().await.unwrap().unwrap();
    order(&worker, "/pause_generation", json!({"mode": "retract"})).await;
    assert_eq!(post(&worker, "/flush_cache", "").await.status, 200);
    order(&worker, "/pause_generation", json!({})).await;
    client.read_until("\"type\":\"abort\"").await;
    assert_eq!(
        ask(&worker, "/pause_generation", json!({"mode": "no"}))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn weight_update_takes_its_time_flushes_the_cache_and_names_the_version() {
    let worker = start(SimOptions {
        weight_update_ms: 150,
        ..SimOptions::default()
    });
    assert_eq!(
        get(&worker, "/model_info").await.json()["weight_version"],
        "default"
    );
    cached(&worker, json!({})).await;
    assert!(cached(&worker, json!({})).await > 0);
    let begun = Instant::now();
    let update = json!({"model_path": "/new", "weight_version": "7"});
    let done = order(&worker, "/update_weights_from_disk", update).await;
    assert!(begun.elapsed() >= Duration::from_millis(150));
    assert_eq!(done["success"], true);
    assert_eq!(done["num_paused_requests"], 0);
    for path in ["/model_info", "/server_info"] {
        assert_eq!(
            get(&worker, path).await.json()["weight_version"],
            "7",
            "{path}"
        );
    }
    let reply = generate(&worker, json!({})).await.json();
    assert_eq!(reply["meta_info"]["weight_version"], "7");
    assert_eq!(reply["meta_info"]["cached_tokens"], 0);
    let kept = json!({"names": [], "flush_cache": false});
    order(&worker, "/update_weights_from_tensor", kept).await;
    assert!(cached(&worker, json!({})).await > 0);
    order(
        &worker,
        "/update_weight_version",
        json!({"new_version": "8"}),
    )
    .await;
    assert_eq!(
        get(&worker, "/model_info").await.json()["weight_version"],
        "8"
    );
}

#[tokio::test]
async fn weight_update_may_leave_the_worker_paused() {
    let worker = started();
    let update = json!({"model_path": "/new", "keep_pause": true});
    order(&worker, "/update_weights_from_disk", update).await;
    assert_eq!(get(&worker, "/ready").await.status, 503);
    order(&worker, "/continue_generation", json!({})).await;
    assert_eq!(get(&worker, "/ready").await.status, 200);
}

#[tokio::test]
async fn adapters_are_listed_kept_apart_and_unknown_ones_refused() {
    let worker = started();
    let adapter = json!({"lora_name": "sql", "lora_path": "/adapters/sql"});
    let loaded = order(&worker, "/load_lora_adapter", adapter.clone()).await;
    assert_eq!(loaded["loaded_adapters"]["sql"], "/adapters/sql");
    assert_eq!(
        ask(&worker, "/load_lora_adapter", adapter).await.status,
        400
    );
    let card = get(&worker, "/v1/models").await.json()["data"][1].clone();
    assert_eq!(
        (&card["id"], &card["root"], &card["parent"]),
        (&json!("sql"), &json!("/adapters/sql"), &json!("sim-model"))
    );
    cached(&worker, json!({})).await;
    assert_eq!(cached(&worker, json!({"lora_path": "sql"})).await, 0);
    assert!(cached(&worker, json!({"lora_path": "sql"})).await > 0);
    let named =
        |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
    let path = "/v1/chat/completions";
    assert_eq!(ask(&worker, path, named("sim-model:sql")).await.status, 200);
    let refused = ask(&worker, path, named("sim-model:other")).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("never been loaded: other"));
    assert_eq!(
        generate(&worker, json!({"lora_path": "other"}))
            .await
            .status,
        400
    );
    order(&worker, "/unload_lora_adapter", json!({"lora_name": "sql"})).await;
    assert_eq!(
        generate(&worker, json!({"lora_path": "sql"})).await.status,
        400
    );
    assert_eq!(
        ask(&worker, "/unload_lora_adapter", json!({"lora_name": "sql"}))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn session_goes_on_where_it_was_and_ends_when_it_is_closed() {
    let worker = started();
    let open = |id: Value| json!({"capacity_of_str_len": 1000, "session_id": id});
    let id = order(&worker, "/open_session", open(Value::Null)).await;
    assert_eq!(
        ask(&worker, "/open_session", open(id.clone())).await.status,
        400
    );
    let turn = json!({"session_params": {"id": id}});
    let first = generate(&worker, turn.clone()).await.json();
    let second = generate(&worker, turn.clone()).await.json();
    let tokens = |reply: &Value| reply["meta_info"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&second), 2 * tokens(&first));
    assert!(second["meta_info"]["cached_tokens"].as_u64().unwrap() > 0);
    order(&worker, "/close_session", json!({"session_id": id})).await;
    let refused = generate(&worker, turn).await;
    assert_eq!(refused.status, 400);
    let message = refused.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(message.contains("does not exist"), "{message}");
}

#[tokio::test]
async fn released_memory_takes_the_cache_with_it() {
    let worker = started();
    cached(&worker, json!({})).await;
    order(
        &worker,
        "/release_memory_occupation",
        json!({"tags": ["weights"]}),
    )
    .await;
    assert!(cached(&worker, json!({})).await > 0);
    order(&worker, "/release_memory_occupation", json!({})).await;
    order(&worker, "/resume_memory_occupation", json!({})).await;
    assert_eq!(cached(&worker, json!({})).await, 0);
}

#[tokio::test]
async fn slowed_worker_takes_longer_for_a_token_until_it_is_not() {
    let worker = started();
    order(&worker, "/slow_down", json!({"forward_sleep_time": 0.05})).await;
    let begun = Instant::now();
    generate(&worker, json!({"sampling_params": {"max_new_tokens": 4}})).await;
    assert!(begun.elapsed() >= Duration::from_millis(150));
    order(&worker, "/slow_down", json!({"forward_sleep_time": null})).await;
    let body = json!({"text": "x", "sampling_params": {"max_new_tokens": 100}, "stream": true});
    let begun = Instant::now();
    let reply = ask(&worker, "/generate", body).await;
    assert_eq!(events(&reply).last().unwrap(), "[DONE]");
    assert!(begun.elapsed() < Duration::from_secs(5));
    until(&worker, |stats| stats.in_flight == 0).await;
}

#[tokio::test]
async fn weights_are_those_of_their_name_and_version() {
    let worker = started();
    let named = |name: &str| json!({"name": name, "truncate_size": 3});
    let one = order(&worker, "/get_weights_by_name", named("a")).await;
    assert_eq!(one.as_array().unwrap().len(), 3);
    assert_eq!(
        order(&worker, "/get_weights_by_name", named("a")).await,
        one
    );
    assert_ne!(
        order(&worker, "/get_weights_by_name", named("b")).await,
        one
    );
    order(
        &worker,
        "/update_weight_version",
        json!({"new_version": "2"}),
    )
    .await;
    assert_ne!(
        order(&worker, "/get_weights_by_name", named("a")).await,
        one
    );
}

#[tokio::test]
async fn plain_routes_answer_as_sglang_does_and_refuse_other_methods() {
    let worker = started();
    for (line, text) in [
        ("GET /", "\"SGLang is running\""),
        ("GET /ping", ""),
        ("GET /start_profile", "Start profiling.\n"),
        (
            "POST /stop_profile",
            "Stop profiling. This will take some time.\n",
        ),
        ("POST /freeze_gc", "Garbage collection frozen.\n"),
        ("POST /configure_logging", ""),
        ("PUT /set_internal_state", "[true]"),
    ] {
        let asked = request(line, "", r#"{"server_args":{}}"#);
        let reply = testkit::raw(worker.addr(), &asked).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, text), "{line}");
    }
    for line in ["GET /pause_generation", "POST /ready", "PUT /open_session"] {
        let reply = testkit::raw(worker.addr(), &request(line, "", "{}")).await;
        assert_eq!(reply.status, 405, "{line}");
    }
}
