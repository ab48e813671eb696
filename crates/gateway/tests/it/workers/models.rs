//! Which workers a request's model names, and how the models are listed.

use serde_json::{Value, json as value};

use crate::support::{
    Reply, Running, Worker, add, get, json, options, post, raw, start, start_with, until,
};

/// A worker that serves a model, and answers with its name.
async fn serving(model: &'static str, cards: Value) -> Worker {
    Worker::listening(0, move |request| match request.path() {
        "/health" => json(200, ""),
        "/server_info" => json(200, &format!(r#"{{"served_model_name":"{model}"}}"#)),
        "/v1/models" => json(200, &value!({"object": "list", "data": cards}).to_string()),
        _ => json(200, &format!(r#"{{"by":"{model}"}}"#)),
    })
    .await
}

async fn ask(gateway: &Running, model: &str) -> Reply {
    let body = format!(r#"{{"model":{model},"prompt":"p"}}"#);
    post(gateway, "/v1/completions", &body).await
}

async fn lists(gateway: &Running, count: usize) -> Value {
    let models = || async { get(gateway, "/v1/models").await.json() };
    until(|| async { models().await["data"].as_array().map(Vec::len) == Some(count) }).await;
    models().await["data"].clone()
}

#[tokio::test]
async fn with_several_models_only_their_names_are_served() {
    let adapter = value!([{"id": "org/b"}, {"id": "sql", "parent": "org/b"}]);
    let workers = [
        serving("org/a", value!([{"id": "org/a"}])).await,
        serving("org/b", adapter).await,
    ];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    lists(&gateway, 3).await;
    for (model, by) in [
        (r#""org/a""#, "org/a"),
        (r#""org/b""#, "org/b"),
        (r#""org/b:sql""#, "org/b"),
        (r#""org/b:not-loaded""#, "org/b"),
        (r#""sql""#, "org/b"),
    ] {
        assert_eq!(ask(&gateway, model).await.json()["by"], by, "{model}");
    }
    for model in [r#""org/A""#, r#""a""#, r#""none""#] {
        let reply = ask(&gateway, model).await;
        assert_eq!((reply.status, &*reply.code()), (404, "model_not_found"));
        assert!(reply.text().contains("org/a, org/b"), "{}", reply.text());
    }
    for model in ["null", "7", r#""""#] {
        let reply = ask(&gateway, model).await;
        assert_eq!((reply.status, &*reply.code()), (400, "missing_model"));
    }
    let targeted = format!(
        "POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n\
         x-smg-target-worker: {}\r\ncontent-length: 2\r\n\r\n{{}}",
        workers[1].url()
    );
    let reply = raw(&gateway, targeted.as_bytes()).await;
    assert_eq!(reply.json()["by"], "org/b");
    let explained = post(&gateway, "/route/explain", r#"{"model":"none","text":"t"}"#).await;
    assert_eq!(explained.status, 404);
}

#[tokio::test]
async fn model_without_ready_workers_is_a_503_with_a_time_to_come_back() {
    let worker = serving("a", value!([])).await;
    let dead = serving("b", value!([])).await;
    let url = dead.url();
    dead.kill().await;
    let gateway = start(&[&worker]).await;
    assert_eq!(ask(&gateway, r#""b""#).await.status, 200);
    add(&gateway, &value!({"url": url, "model_id": "b"})).await;
    let reply = ask(&gateway, r#""b""#).await;
    assert_eq!(
        (reply.status, &*reply.code()),
        (503, "no_available_workers")
    );
    assert!(reply.header("retry-after").parse::<u64>().unwrap() > 0);
    assert_eq!(ask(&gateway, r#""a""#).await.status, 200);
    assert_eq!(ask(&gateway, "null").await.status, 400);
}

#[tokio::test]
async fn alias_of_a_registration_names_its_model() {
    let workers = [
        serving("a", value!([])).await,
        serving("b", value!([])).await,
    ];
    let gateway = start(&[&workers[0]]).await;
    let models = value!([{"id": "org/b", "aliases": ["gpt-4o"]}]);
    add(
        &gateway,
        &value!({"url": workers[1].url(), "models": models}),
    )
    .await;
    lists(&gateway, 2).await;
    for model in [r#""gpt-4o""#, r#""org/b""#, r#""b""#] {
        assert_eq!(ask(&gateway, model).await.json()["by"], "b", "{model}");
    }
}

#[tokio::test]
async fn igw_and_exact_matching_refuse_other_names_of_the_only_model_and_any_takes_all() {
    use gateway::config::ModelMatching::{Any, Auto, Exact};
    for (matching, igw, status) in [(Auto, true, 404), (Exact, false, 404), (Any, true, 200)] {
        let worker = serving("a", value!([])).await;
        let mut options = options(&[&worker]);
        (options.model_matching, options.enable_igw) = (matching, igw);
        let gateway = start_with(options).await;
        assert_eq!(ask(&gateway, r#""b""#).await.status, status, "{matching:?}");
        assert_eq!(ask(&gateway, r#""a""#).await.status, 200);
        assert_eq!(ask(&gateway, "null").await.status, 200);
    }
}

#[tokio::test]
async fn workers_own_cards_are_merged_and_shown_one_by_one() {
    let card = |length: u64, more: Value| {
        let base = value!({"id": "org/m", "object": "model", "created": 7, "owned_by": "sglang",
            "root": "/m", "max_model_len": length, "secret": "k"});
        let mut cards = vec![base];
        cards.extend(more.as_array().unwrap().clone());
        Value::from(cards)
    };
    let adapter = value!([{"id": "sql", "object": "model", "root": "/l", "parent": "org/m"}]);
    let workers = [
        serving("org/m", card(4096, value!([]))).await,
        serving("org/m", card(2048, adapter)).await,
    ];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let listed = lists(&gateway, 2).await;
    let base = value!({"id": "org/m", "object": "model", "created": 7, "owned_by": "sglang",
        "root": "/m", "max_model_len": 2048});
    assert_eq!(listed[0], base);
    assert_eq!(
        (&listed[1]["id"], &listed[1]["parent"]),
        (&value!("sql"), &value!("org/m"))
    );
    for path in ["/v1/models/org/m", "/v1/models/org%2Fm"] {
        assert_eq!(get(&gateway, path).await.json(), base, "{path}");
    }
    let missing = get(&gateway, "/v1/models/org/none").await;
    assert_eq!((missing.status, &*missing.code()), (404, "model_not_found"));
}
