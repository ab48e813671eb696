//! Keys of clients that have not all models.

use std::fs;

use gateway::Options;
use gateway::config::ModelMatching;
use serde_json::{Value, json};

use super::support::{TempDir, bearer};
use crate::support::{
    Client, Reply, Running, Worker, get, json as answer, options, posting, raw, start_with, until,
};

/// A worker that serves a model and adapters, and answers with the model's name.
async fn serving(model: &'static str, adapters: &'static [&'static str]) -> Worker {
    Worker::listening(0, move |request| match request.path() {
        "/health" => answer(200, ""),
        "/server_info" => answer(200, &json!({"served_model_name": model}).to_string()),
        "/v1/models" => {
            let own = json!({"id": model});
            let adapters = adapters
                .iter()
                .map(|name| json!({"id": name, "parent": model}));
            let cards: Value = [own].into_iter().chain(adapters).collect();
            answer(200, &json!({"data": cards}).to_string())
        }
        _ => answer(200, &json!({"by": model}).to_string()),
    })
    .await
}

struct Stage {
    gateway: Running,
    _dir: TempDir,
}

impl Stage {
    /// A gateway with keys that are named as what they may use, separated by commas; `all` may use
    /// everything.
    async fn new(name: &str, workers: &[&Worker], options: Options) -> Self {
        let dir = TempDir::new(name);
        let path = dir.path("keys.json");
        let limited = ["a", "b", "sql", "a:sql", "a,other", "gpt-4", "", "a,b,sql"];
        let keys = limited.map(|models| {
            let models: Vec<_> = models.split_terminator(',').collect();
            json!({"name": format!("may {}", models.join(",")), "key": format!("k{}", models.join(",")), "models": models})
        });
        let all = json!({"name": "all", "key": "all"});
        let keys: Value = keys.into_iter().chain([all]).collect();
        fs::write(&path, keys.to_string()).unwrap();
        let gateway = start_with(Options {
            api_keys_file: Some(path.to_str().unwrap().to_owned()),
            ..options
        })
        .await;
        if !workers.is_empty() {
            gateway.has_ready(workers.len()).await;
        }
        Self { gateway, _dir: dir }
    }

    async fn post(&self, key: &str, path: &str, body: &str) -> Reply {
        raw(&self.gateway, &posting(path, &bearer(key), body)).await
    }

    /// The model that answers, or the code of the refusal.
    async fn ask(&self, key: &str, body: &str) -> String {
        let reply = self.post(key, "/v1/completions", body).await;
        match reply.status {
            200 => reply.json()["by"].as_str().unwrap().to_owned(),
            _ => reply.code(),
        }
    }

    async fn listed(&self, key: &str) -> Vec<String> {
        let request = format!("GET /v1/models HTTP/1.1\r\nhost: g\r\n{}\r\n", bearer(key));
        let listed = raw(&self.gateway, request.as_bytes()).await.json();
        let cards = listed["data"].as_array().unwrap().iter();
        let ids = cards.map(|card| card["id"].as_str().unwrap().to_owned());
        ids.collect()
    }
}

const REFUSED: &str = "model_not_allowed";

#[tokio::test]
async fn of_several_models_and_adapters_a_key_gets_those_that_it_lists() {
    let workers = [serving("a", &["sql"]).await, serving("b", &[]).await];
    let workers = [&workers[0], &workers[1]];
    let stage = Stage::new("several", &workers, options(&workers)).await;
    until(|| async { get(&stage.gateway, "/v1/models").await.json()["data"][2].is_object() }).await;
    for (key, body, by) in [
        ("all", r#"{"model":"b"}"#, "b"),
        ("all", r#"{"model":"a:sql"}"#, "a"),
        ("ka", r#"{"model":"a"}"#, "a"),
        ("ka", r#"{"model":"b"}"#, REFUSED),
        ("ka", r#"{"model":"sql"}"#, REFUSED),
        ("ka", r#"{"model":"a:sql"}"#, REFUSED),
        ("ka", r#"{"model":"a: sql"}"#, REFUSED),
        ("ka", r#"{"model":"a:evicted"}"#, REFUSED),
        ("ka", r#"{"model":"a","lora_path":"sql"}"#, REFUSED),
        ("ka", r#"{"model":"a","lora_path":["sql"]}"#, REFUSED),
        ("ka", r#"{"model":"a","lora_path":[null,"sql"]}"#, REFUSED),
        ("ka", r#"{"model":"a","lora_path":[["sql"]]}"#, REFUSED),
        ("ka", r#"{"model":"a","lora_path":{"sql":1}}"#, REFUSED),
        ("ka", r#"{"model":"a","lora_path":"s\u0071l"}"#, REFUSED),
        ("ka", r#"{"model":"a","lora_path":null}"#, "a"),
        ("ka", r#"{"model":"a","lora_path":[null,null]}"#, "a"),
        ("ka", r#"{"model":"\u0062"}"#, REFUSED),
        ("ka", r#"{"model":"a","model":"b"}"#, REFUSED),
        ("ka", r#"{"model":"none"}"#, "model_not_found"),
        ("ka", "{}", "missing_model"),
        ("kb", r#"{"model":"b"}"#, "b"),
        ("kb", r#"{"model":"a"}"#, REFUSED),
        ("ksql", r#"{"model":"sql"}"#, "a"),
        ("ksql", r#"{"model":"a:sql"}"#, "a"),
        ("ksql", r#"{"model":"a","lora_path":["sql",null]}"#, "a"),
        ("ksql", r#"{"model":"a:other"}"#, REFUSED),
        ("ksql", r#"{"model":"b"}"#, REFUSED),
        ("ka:sql", r#"{"model":"sql"}"#, "a"),
        ("ka:sql", r#"{"model":"b:sql"}"#, REFUSED),
        ("k", r#"{"model":"a"}"#, REFUSED),
        ("kgpt-4", r#"{"model":"a"}"#, REFUSED),
    ] {
        assert_eq!(stage.ask(key, body).await, by, "{key} {body}");
    }
    for (key, listed) in [
        ("all", &["a", "b", "sql"][..]),
        ("unknown", &["a", "b", "sql"]),
        ("ka", &["a"]),
        ("kb", &["b"]),
        ("ksql", &["a", "sql"]),
        ("ka:sql", &["a", "sql"]),
        ("k", &[]),
    ] {
        assert_eq!(stage.listed(key).await, listed, "{key}");
    }
    let page = stage.gateway.metrics().await;
    let line = "smg_api_key_refused_total{key=\"may b\",limit=\"models\"} 1\n";
    assert!(page.contains(line), "{page}");
}

#[tokio::test]
async fn refusal_names_what_the_key_may_use_and_nothing_else() {
    let workers = [serving("a", &[]).await, serving("b", &[]).await];
    let workers = [&workers[0], &workers[1]];
    let stage = Stage::new("refusal", &workers, options(&workers)).await;
    let reply = stage
        .post("ka", "/v1/completions", r#"{"model":"b"}"#)
        .await;
    assert_eq!(reply.status, 403);
    let error = &reply.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("invalid_request_error"), &json!(REFUSED))
    );
    let message = "this API key may not use what serves \"b\"; it may use: a";
    assert_eq!(error["message"], message);
    for body in [r#"{"model":"c"}"#, "{}"] {
        let text = stage.post("ka", "/v1/completions", body).await.text();
        assert!(!text.contains("a, b") && text.contains(": a"), "{text}");
    }
    let shown = async |model: &str| {
        let request = format!(
            "GET /v1/models/{model} HTTP/1.1\r\nhost: g\r\n{}\r\n",
            bearer("ka")
        );
        raw(&stage.gateway, request.as_bytes()).await
    };
    assert_eq!(shown("a").await.status, 200);
    let reply = shown("b").await;
    assert_eq!((reply.status, &*reply.code()), (404, "model_not_found"));
    assert!(reply.text().contains("served: a\""), "{}", reply.text());
}

#[tokio::test]
async fn of_one_model_under_any_name_the_model_that_serves_counts() {
    let worker = serving("a", &[]).await;
    let stage = Stage::new("one", &[&worker], options(&[&worker])).await;
    for body in [
        "{}",
        r#"{"model":"gpt-4"}"#,
        r#"{"model":"a"}"#,
        r#"{"model":7}"#,
    ] {
        assert_eq!(stage.ask("ka", body).await, "a", "{body}");
        assert_eq!(stage.ask("kb", body).await, REFUSED, "{body}");
        assert_eq!(stage.ask("kgpt-4", body).await, REFUSED, "{body}");
    }
    // An engine takes what is behind a colon for an adapter, whether it lists it or not.
    for body in [r#"{"model":"gpt-4:other"}"#, r#"{"model":"a:other"}"#] {
        assert_eq!(stage.ask("ka", body).await, REFUSED, "{body}");
        assert_eq!(stage.ask("ka,other", body).await, "a", "{body}");
    }
}

#[tokio::test]
async fn where_any_model_may_serve_a_key_needs_all_of_them() {
    let workers = [serving("a", &[]).await, serving("b", &[]).await];
    let workers = [&workers[0], &workers[1]];
    let any = Options {
        model_matching: ModelMatching::Any,
        ..options(&workers)
    };
    let stage = Stage::new("any", &workers, any).await;
    assert_eq!(stage.ask("ka", "{}").await, REFUSED);
    assert_eq!(stage.ask("ka", r#"{"model":"c"}"#).await, REFUSED);
    assert_eq!(stage.ask("ka", r#"{"model":"a"}"#).await, "a");
    assert_ne!(stage.ask("ka,b,sql", "{}").await, REFUSED);
}

#[tokio::test]
async fn worker_that_the_client_names_counts_by_its_own_model() {
    let workers = [serving("a", &[]).await, serving("b", &[]).await];
    let workers = [&workers[0], &workers[1]];
    let stage = Stage::new("target", &workers, options(&workers)).await;
    let aim = async |worker: &Worker, body: &str| {
        let lines = format!("{}x-smg-target-worker: {}\r\n", bearer("ka"), worker.url());
        raw(&stage.gateway, &posting("/generate", &lines, body)).await
    };
    for body in ["{}", r#"{"model":"a"}"#] {
        assert_eq!(aim(workers[0], body).await.json()["by"], "a");
        assert_eq!(aim(workers[1], body).await.status, 403, "{body}");
    }
}

#[tokio::test]
async fn every_endpoint_asks_whether_the_key_has_the_model() {
    let worker = serving("a", &[]).await;
    let stage = Stage::new("endpoints", &[&worker], options(&[&worker])).await;
    for path in [
        "/generate",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/responses",
        "/v1/messages",
        "/v1/tokenize",
        "/detokenize",
        "/encode",
        "/open_session",
        "/api/chat",
        "/api/show",
        "/invocations",
        "/vertex_generate",
    ] {
        let reply = stage.post("kb", path, "{}").await;
        assert_eq!(reply.status, 403, "{path}");
        assert_eq!(reply.header("x-smg-error-code"), REFUSED, "{path}");
    }
    // Adapters stand in a field that is not read.
    let reply = stage.post("ka", "/vertex_generate", "{}").await;
    assert_eq!(reply.status, 403);
    assert_eq!(
        stage.post("all", "/vertex_generate", "{}").await.status,
        200
    );
    let lines = format!(
        "GET /v1/realtime?model=a HTTP/1.1\r\nhost: g\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}\r\n",
        bearer("kb")
    );
    let mut client = Client::to(&stage.gateway).await;
    client.send(lines.as_bytes()).await;
    assert_eq!(client.reply().await.status, 403);
    // A stored response of a model that the key has not is not looked for.
    let before = worker.received().len();
    let stored = |key| {
        format!(
            "GET /v1/responses/r1 HTTP/1.1\r\nhost: g\r\n{}\r\n",
            bearer(key)
        )
    };
    assert_eq!(
        raw(&stage.gateway, stored("kb").as_bytes()).await.status,
        503
    );
    assert!(
        worker.received()[before..]
            .iter()
            .all(|it| !it.path().starts_with("/v1/responses"))
    );
    assert_eq!(
        raw(&stage.gateway, stored("ka").as_bytes()).await.status,
        200
    );
}

#[tokio::test]
async fn request_without_a_worker_is_503_not_403() {
    let stage = Stage::new("none", &[], options(&[])).await;
    assert_eq!(
        stage.ask("ka", r#"{"model":"a"}"#).await,
        "no_available_workers"
    );
}
