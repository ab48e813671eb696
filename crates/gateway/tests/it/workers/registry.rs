//! Workers that come, change and go while the gateway runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json as value};

use crate::support::{
    Received, Reply, Worker, add, bare, get, json, ok, options, post, raw, send, shown, start,
    start_with, until, until_gone, until_status,
};

fn refused(reply: &Reply, status: u16, code: &str, names: &str) {
    let body = reply.json();
    assert_eq!(
        (reply.status, &body["code"]),
        (status, &code.into()),
        "{body}"
    );
    assert!(body["error"].as_str().unwrap().contains(names), "{body}");
    assert_eq!(reply.header("x-smg-error-code"), code);
}

#[tokio::test]
async fn a_gateway_without_workers_gets_them_at_run_time() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[]).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 503);
    let url = format!("127.0.0.1:{}", worker.port());
    let reply = send(&gateway, "POST /workers", &value!({"url": url})).await;
    let body = reply.json();
    assert_eq!(reply.status, 202);
    assert_eq!(body["status"], "accepted");
    assert_eq!(body["url"], worker.url());
    let id = body["worker_id"].as_str().unwrap();
    assert_eq!(reply.header("location"), format!("/workers/{id}"));
    assert_eq!(body["location"], format!("/workers/{id}"));
    until_status(&gateway, id, "ready").await;
    let one = shown(&gateway, id).await;
    assert_eq!(
        (&one["model_id"], &one["job_status"]),
        (&"test-model".into(), &Value::Null)
    );
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);

    let undashed = id.replace('-', "");
    for form in [undashed, format!("urn:uuid:{id}"), id.to_uppercase()] {
        assert_eq!(shown(&gateway, &form).await["id"], *id, "{form}");
    }
    let gone = bare(&gateway, &format!("DELETE /workers/urn:uuid:{id}")).await;
    assert_eq!(gone.status, 202);
    until_gone(&gateway, id).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 503);
    let page = gateway.metrics().await;
    assert!(!page.contains(&worker.url()), "{page}");
    for line in [
        r#"smg_discovery_registrations_total{result="success",source="manual"} 1"#,
        r#"smg_discovery_deregistrations_total{reason="removed",source="manual"} 1"#,
    ] {
        assert!(page.contains(line), "{page}");
    }
    let again = add(&gateway, &value!({"url": worker.url()})).await;
    assert_ne!(again, *id);
}

#[tokio::test]
async fn a_shared_port_is_listened_on_by_a_gateway_without_workers() {
    let mut options = options(&[]);
    options.reuse_port = true;
    // This one is waited for only as long as a test lasts.
    let gateway = start_with(options).await;
    assert_eq!(get(&gateway, "/workers").await.json()["total"], 0);
}

#[tokio::test]
async fn everything_said_of_a_worker_is_shown_but_its_key() {
    let worker = Worker::doing(ok()).await;
    let other = Worker::doing(ok()).await;
    let gateway = start(&[&other]).await;
    let id = add(
        &gateway,
        &value!({
            "url": worker.url(), "api_key": "s3cret", "model_id": "mine", "priority": 7, "cost": 2.5,
            "labels": {"rack": "r1", "tp_size": "8"}, "tokenizer_path": "/t", "tool_parser": "p",
            "bootstrap_port": 8998, "runtime": "vllm", "health_check_interval_secs": 9,
        }),
    )
    .await;
    until_status(&gateway, &id, "ready").await;
    let reply = get(&gateway, &format!("/workers/{id}")).await;
    assert!(!reply.text().contains("s3cret"));
    let one = reply.json();
    for (field, expected) in [
        ("model_id", value!("mine")),
        ("models", value!([{"id": "mine"}])),
        ("priority", value!(7)),
        ("cost", value!(2.5)),
        ("runtime_type", value!("vllm")),
        ("tokenizer_path", value!("/t")),
        ("tool_parser", value!("p")),
        ("bootstrap_port", value!(8998)),
        ("health", value!({"check_interval_secs": 9})),
        ("disable_health_check", value!(false)),
        ("connection_mode", value!("http")),
        ("index", value!(1)),
        ("source", value!("manual")),
    ] {
        assert_eq!(one[field], expected, "{field}");
    }
    assert_eq!(
        (&one["labels"]["rack"], &one["labels"]["tp_size"]),
        (&"r1".into(), &"8".into())
    );
    let metadata = &one["metadata"];
    assert_eq!(
        (&metadata["priority"], &metadata["cost"], &metadata["rack"]),
        (&"7".into(), &"2.5".into(), &"r1".into())
    );
    // The key goes to the worker, the user's model beats the one that the worker reports.
    let named = post(&gateway, "/v1/completions", r#"{"model":"mine"}"#).await;
    assert_eq!(named.status, 200);
    assert_eq!(worker.received()[0].all("authorization"), ["Bearer s3cret"]);
    let listed = get(&gateway, "/workers?model=mine").await.json();
    assert_eq!(
        (&listed["total"], &listed["workers"][0]["id"]),
        (&1.into(), &id.into())
    );
    let all = get(&gateway, "/workers").await.json();
    let first = &all["workers"][0]["source"];
    assert_eq!((&all["total"], first), (&2.into(), &"configured".into()));
    assert_eq!(
        get(&gateway, "/workers?model=nobodys").await.json()["total"],
        0
    );
}

#[tokio::test]
async fn a_second_post_gets_the_same_id_or_a_conflict() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[]).await;
    let spec = value!({"url": worker.url(), "priority": 3});
    let id = add(&gateway, &spec).await;
    until_status(&gateway, &id, "ready").await;
    assert_eq!(add(&gateway, &spec).await, id);
    let other = value!({"url": worker.url(), "priority": 4});
    let reply = send(&gateway, "POST /workers", &other).await;
    refused(&reply, 409, "WORKER_ALREADY_EXISTS", &id);
    assert_eq!(shown(&gateway, &id).await["priority"], 3);
    assert_eq!(get(&gateway, "/workers").await.json()["total"], 1);
}

#[tokio::test]
async fn a_worker_that_is_not_up_yet_may_be_registered_on_other_terms() {
    let dead = Worker::doing(ok()).await;
    let (url, port) = (dead.url(), dead.port());
    dead.kill().await;
    let mut options = options(&[]);
    options.worker_startup_timeout_secs = 1;
    options.health_check_interval_secs = 1;
    let gateway = start_with(options).await;
    let id = add(&gateway, &value!({"url": url})).await;
    let pending = shown(&gateway, &id).await;
    assert_eq!(pending["status"], "pending");
    let job = &pending["job_status"];
    assert_eq!(
        (&job["status"], &job["job_type"], &job["worker_url"]),
        (
            &"processing".into(),
            &"AddWorker".into(),
            &url.clone().into()
        )
    );
    assert_eq!(
        add(&gateway, &value!({"url": url, "priority": 1})).await,
        id
    );
    assert_eq!(shown(&gateway, &id).await["priority"], 1);
    until_status(&gateway, &id, "failed").await;
    let failed = shown(&gateway, &id).await;
    assert_eq!(failed["job_status"]["status"], "failed");
    assert!(failed["job_status"]["timestamp"].as_u64() >= job["timestamp"].as_u64());
    let page = gateway.metrics().await;
    let line = r#"smg_discovery_registrations_total{result="failed",source="manual"} 1"#;
    assert!(page.contains(line), "{page}");
    // Once more: it has its start-up time again.
    assert_eq!(add(&gateway, &value!({"url": url})).await, id);
    assert_eq!(shown(&gateway, &id).await["status"], "pending");
    until_status(&gateway, &id, "failed").await;
    // Failed is not the end.
    let _alive = Worker::listening(port, |_| ok()).await;
    until_status(&gateway, &id, "ready").await;
}

#[tokio::test]
async fn a_bad_registration_is_refused_with_the_field_named() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    for (spec, names) in [
        (value!({}), "url"),
        (value!({"url": 7}), "url"),
        (value!({"url": ""}), "url"),
        (value!({"url": "ftp://a:1"}), "url"),
        (value!({"url": "https://a..b:1"}), "no certificate can name"),
        (
            value!({"url": "grpc://a:1"}),
            "gRPC workers are not supported yet",
        ),
        (
            value!({"url": "a:1", "worker_type": "encode"}),
            "worker_type",
        ),
        (
            value!({"url": "a:1", "connection_mode": "zmq"}),
            "connection_mode",
        ),
        (value!({"url": "a:1", "dp_rank": 1}), "dp_rank"),
        (
            value!({"url": "a:1", "labels": {"policy": "best"}}),
            "labels.policy",
        ),
        (value!([1]), "JSON object"),
    ] {
        let reply = send(&gateway, "POST /workers", &spec).await;
        refused(&reply, 400, "BAD_REQUEST", names);
    }
    refused(
        &post(&gateway, "/workers", "{nonsense").await,
        400,
        "BAD_REQUEST",
        "JSON",
    );
    let plain = b"POST /workers HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\n\r\n{}";
    refused(
        &raw(&gateway, plain).await,
        400,
        "BAD_REQUEST",
        "content-type",
    );
    let large = value!({"url": "a:1", "x": "y".repeat(2 << 20)});
    assert_eq!(send(&gateway, "POST /workers", &large).await.status, 413);
    let unknown = "/workers/00000000-0000-4000-8000-000000000000";
    for method in ["GET", "PUT", "PATCH", "DELETE"] {
        let reply = send(&gateway, &format!("{method} {unknown}"), &value!({})).await;
        refused(&reply, 404, "WORKER_NOT_FOUND", "not found");
        let reply = send(&gateway, &format!("{method} /workers/7"), &value!({})).await;
        refused(&reply, 400, "BAD_REQUEST", "Invalid worker_id '7'");
    }
    assert_eq!(get(&gateway, "/workers").await.json()["total"], 1);
}

#[tokio::test]
async fn a_worker_is_changed_in_part_or_replaced_and_never_by_halves() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let list = get(&gateway, "/workers").await.json();
    let path = format!("/workers/{}", list["workers"][0]["id"].as_str().unwrap());
    let change = async |method: &str, body: Value| {
        let reply = send(&gateway, &format!("{method} {path}"), &body).await;
        if reply.status == 202 {
            let message = "Worker update queued for background processing";
            assert_eq!(reply.json()["message"], message);
        }
        (reply.status, get(&gateway, &path).await.json())
    };
    let some = value!({"priority": 9, "labels": {"a": "1"}, "api_key": "k1"});
    let (status, one) = change("PATCH", some).await;
    assert_eq!(
        (status, &one["priority"], &one["labels"]["a"]),
        (202, &9.into(), &"1".into())
    );
    post(&gateway, "/generate", "{}").await;
    assert_eq!(worker.received()[0].all("authorization"), ["Bearer k1"]);
    // Without a URL this is a partial change, too: what 0.3.2's clients send.
    let (status, one) = change("PUT", value!({"cost": 4, "labels": {"b": "2"}})).await;
    assert_eq!(
        (status, &one["priority"], &one["cost"]),
        (202, &9.into(), &4.0.into())
    );
    assert_eq!(
        (&one["labels"]["a"], &one["labels"]["b"]),
        (&"1".into(), &"2".into())
    );
    let (status, one) = change("PATCH", value!({"priority": 1, "cost": "dear"})).await;
    assert_eq!((status, &one["priority"]), (400, &9.into()));
    let (status, _) = change("PUT", value!({"url": "http://other:1"})).await;
    assert_eq!(status, 400);
    let (status, one) = change("PUT", value!({"url": worker.url(), "model_id": "new"})).await;
    assert_eq!(
        (status, &one["priority"], &one["model_id"]),
        (202, &50.into(), &"new".into())
    );
    assert_eq!(one["labels"]["a"], Value::Null);
    let (_, one) = change("PUT", value!({"url": worker.url()})).await;
    assert_eq!(one["model_id"], "test-model");
    post(&gateway, "/generate", "{}").await;
    assert!(worker.received()[1].all("authorization").is_empty());
}

#[tokio::test]
async fn changed_probes_take_effect_at_once() {
    let sick = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&sick);
    let worker = Worker::listening(0, move |request: &Received| {
        let ill = request.path() == "/health" && state.load(Ordering::SeqCst);
        if ill { json(500, "{}") } else { ok() }
    })
    .await;
    let mut options = options(&[&worker]);
    options.health_check_interval_secs = 1000;
    let gateway = start_with(options).await;
    let list = get(&gateway, "/workers").await.json();
    let id = list["workers"][0]["id"].as_str().unwrap().to_owned();
    let patch = async |health: Value| {
        let line = format!("PATCH /workers/{id}");
        let reply = send(&gateway, &line, &value!({"health": health})).await;
        assert_eq!(reply.status, 202);
    };
    sick.store(true, Ordering::SeqCst);
    // Left alone, three failures in a row, a thousand seconds apart at first, would be needed.
    patch(value!({"failure_threshold": 1, "success_threshold": 1, "check_interval_secs": 1})).await;
    until_status(&gateway, &id, "not_ready").await;
    // Where probes are off they go on until the worker is well, and no longer.
    patch(value!({"disable_health_check": true})).await;
    sick.store(false, Ordering::SeqCst);
    until_status(&gateway, &id, "ready").await;
    sick.store(true, Ordering::SeqCst);
    assert!(
        !gateway.gateway.suspect(&worker.url()),
        "nothing could clear it"
    );
    assert_eq!(shown(&gateway, &id).await["disable_health_check"], true);
    patch(value!({"disable_health_check": false})).await;
    until_status(&gateway, &id, "not_ready").await;
}

#[tokio::test]
async fn the_routes_of_before_work() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let mut options = options(&[]);
    options.worker_startup_timeout_secs = 1;
    let gateway = start_with(options).await;
    let url = |worker: &Worker| format!("http%3A%2F%2F127.0.0.1%3A{}", worker.port());
    for (worker, query) in [
        (&workers[0], format!("url={}&api_key=k", url(&workers[0]))),
        (&workers[1], format!("url={}", workers[1].url())),
    ] {
        for _ in 0..2 {
            let reply = bare(&gateway, &format!("POST /add_worker?{query}")).await;
            let said = format!("Successfully added worker: {}", worker.url());
            assert_eq!((reply.status, reply.text()), (200, said));
        }
    }
    // It had waited.
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    let list = get(&gateway, "/list_workers").await.json();
    assert_eq!(list, value!({"urls": [workers[0].url(), workers[1].url()]}));
    let gone = bare(
        &gateway,
        &format!("POST /remove_worker?url={}", url(&workers[0])),
    )
    .await;
    let said = format!("Successfully removed worker: {}", workers[0].url());
    assert_eq!((gone.status, gone.text()), (200, said));
    let left = value!({"urls": [workers[1].url()]});
    until(|| async { get(&gateway, "/list_workers").await.json() == left }).await;

    let dead = Worker::doing(ok()).await;
    let dead_url = dead.url();
    dead.kill().await;
    for (line, names) in [
        (
            format!("POST /add_worker?url={dead_url}"),
            "did not become ready",
        ),
        ("POST /add_worker".to_owned(), "url"),
        ("POST /add_worker?url=grpc://a:1".to_owned(), "gRPC"),
        (
            format!("POST /add_worker?url={}&api_key=x", workers[1].url()),
            "already exists",
        ),
        (format!("POST /remove_worker?url={dead_url}"), "not found"),
    ] {
        let reply = bare(&gateway, &line).await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (400, "text/plain; charset=utf-8")
        );
        assert!(reply.text().contains(names), "{line}: {}", reply.text());
    }
    until(|| async { get(&gateway, "/list_workers").await.json() == left }).await;
}

#[tokio::test]
async fn the_register_is_behind_the_key() {
    let mut options = options(&[]);
    options.api_key = Some("k".to_owned().into());
    let gateway = start_with(options).await;
    for line in [
        "POST /workers",
        "GET /workers",
        "PUT /workers/1",
        "PATCH /workers/1",
        "DELETE /workers/1",
        "POST /add_worker?url=a:1",
        "POST /remove_worker?url=a:1",
        "GET /list_workers",
    ] {
        assert_eq!(bare(&gateway, line).await.status, 401, "{line}");
    }
}

#[tokio::test]
async fn worker_is_shown_as_registered_and_found_by_any_spelling_of_its_url() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[]).await;
    let url = format!("http://LocalHost:{}/", worker.port());
    let added = post(&gateway, "/workers", &format!(r#"{{"url":"{url}"}}"#)).await;
    assert_eq!(added.status, 202, "{added:?}");
    gateway.has_ready(1).await;
    let shown = url.trim_end_matches('/');
    let listed = get(&gateway, "/workers").await.json();
    assert_eq!(listed["workers"][0]["url"], shown);
    assert_eq!(
        get(&gateway, "/list_workers").await.json()["urls"][0],
        shown
    );
    assert!(
        gateway
            .metrics()
            .await
            .contains(&format!("smg_worker_health{{worker=\"{shown}\"}} 1"))
    );
    let port = worker.port();
    for name in [
        format!("http%3A%2F%2FLocalHost%3A{port}"),
        format!("localhost:{port}"),
    ] {
        let found = get(&gateway, &format!("/workers/{name}")).await;
        assert_eq!(
            (found.status, &found.json()["url"]),
            (200, &shown.into()),
            "{name}"
        );
    }
    let unknown = get(&gateway, "/workers/http%3A%2F%2Fother%3A1").await;
    assert_eq!(
        (unknown.status, &unknown.json()["code"]),
        (404, &"WORKER_NOT_FOUND".into())
    );
    let removed =
        format!("DELETE /workers/http%3A%2F%2FLOCALHOST%3A{port} HTTP/1.1\r\nhost: g\r\n\r\n");
    assert_eq!(raw(&gateway, removed.as_bytes()).await.status, 202);
}
