//! A worker's label decides which policy its model has.

use routing::PolicyKind;
use serde_json::json as value;

use crate::support::{
    Reply, Running, Worker, add, get, json, ok, options, post, raw, send, start, start_with, until,
    until_status,
};

/// A worker that serves this model.
async fn serving(model: &'static str) -> Worker {
    Worker::listening(0, move |request| match request.path() {
        "/server_info" => json(200, &format!(r#"{{"served_model_name":"{model}"}}"#)),
        _ => ok(),
    })
    .await
}

async fn gateway() -> Running {
    let mut options = options(&[]);
    options.policy = PolicyKind::CacheAware;
    start_with(options).await
}

async fn asked(gateway: &Running, model: &str) -> Reply {
    let body = format!(r#"{{"model":"{model}","prompt":"p"}}"#);
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\nx-smg-explain: 1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    raw(gateway, request.as_bytes()).await
}

/// The policy that chose for a request.
async fn policy(gateway: &Running, model: &str) -> String {
    let reply = asked(gateway, model).await;
    assert_eq!(reply.status, 200);
    let policy = reply.header("x-smg-routed-policy").to_owned();
    let decisions = get(gateway, "/debug/decisions?limit=1").await.json();
    assert_eq!(decisions["decisions"][0]["policy"], *policy);
    policy
}

async fn joined(gateway: &Running, worker: &Worker, labels: serde_json::Value) -> String {
    let id = add(gateway, &value!({"url": worker.url(), "labels": labels})).await;
    until_status(gateway, &id, "ready").await;
    id
}

#[tokio::test]
async fn the_first_worker_of_a_model_decides_until_its_last_one_has_left() {
    let gateway = gateway().await;
    let workers = [serving("a").await, serving("a").await, serving("a").await];
    let first = joined(&gateway, &workers[0], value!({"policy": "roundrobin"})).await;
    // Also where only one model is served, whatever a request calls it.
    assert_eq!(policy(&gateway, "a").await, "round_robin");
    assert_eq!(policy(&gateway, "whatever").await, "round_robin");
    let second = joined(&gateway, &workers[1], value!({"policy": "random"})).await;
    assert_eq!(policy(&gateway, "a").await, "round_robin");
    remove(&gateway, &first).await;
    assert_eq!(policy(&gateway, "a").await, "round_robin");
    assert_eq!(selections(&gateway, "round_robin").await, Some(4));
    remove(&gateway, &second).await;
    joined(&gateway, &workers[2], value!({})).await;
    assert_eq!(policy(&gateway, "a").await, "cache_aware");
    assert_eq!(selections(&gateway, "cache_aware").await, Some(1));
    // No series remains of the model that has left, whose policy was another.
    assert_eq!(selections(&gateway, "round_robin").await, None);
}

/// How often a policy chose for model `a`.
async fn selections(gateway: &Running, policy: &str) -> Option<u64> {
    let line = format!(
        r#"smg_worker_selection_total{{connection_mode="http",model="a",policy="{policy}",worker_type="regular"}} "#
    );
    let page = gateway.metrics().await;
    let count = page.lines().find_map(|it| it.strip_prefix(&line));
    count.map(|count| count.parse().unwrap())
}

async fn remove(gateway: &Running, id: &str) {
    let line = format!("DELETE /workers/{id} HTTP/1.1\r\nhost: g\r\n\r\n");
    assert_eq!(raw(gateway, line.as_bytes()).await.status, 202);
    let path = format!("/workers/{id}");
    until(|| async { get(gateway, &path).await.status == 404 }).await;
}

#[tokio::test]
async fn a_label_on_a_later_worker_decides_nothing() {
    let gateway = gateway().await;
    let workers = [serving("a").await, serving("a").await];
    let first = joined(&gateway, &workers[0], value!({})).await;
    joined(&gateway, &workers[1], value!({"policy": "random"})).await;
    assert_eq!(policy(&gateway, "a").await, "cache_aware");
    remove(&gateway, &first).await;
    assert_eq!(policy(&gateway, "a").await, "cache_aware");
}

#[tokio::test]
async fn every_model_has_the_policy_of_its_own_label() {
    let gateway = gateway().await;
    let workers = [serving("a").await, serving("b").await, serving("c").await];
    joined(&gateway, &workers[0], value!({"policy": "power_of_two"})).await;
    joined(&gateway, &workers[1], value!({"policy": "LeastLoad"})).await;
    joined(&gateway, &workers[2], value!({})).await;
    for (model, wanted) in [
        ("a", "power_of_two"),
        ("b", "least_load"),
        ("c", "cache_aware"),
    ] {
        assert_eq!(policy(&gateway, model).await, wanted, "{model}");
    }
    let body = r#"{"model":"b","prompt":"p"}"#;
    let dry = post(&gateway, "/route/explain", body).await.json();
    assert_eq!(
        (&dry["policy"], &dry["candidates"][0]["worker"]),
        (&"least_load".into(), &workers[1].url().into())
    );
}

async fn patched(gateway: &Running, id: &str, policy: &str) {
    let labels = value!({"labels": {"policy": policy}});
    let reply = send(gateway, &format!("PATCH /workers/{id}"), &labels).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
}

#[tokio::test]
async fn a_changed_label_decides_where_the_first_one_did() {
    let gateway = gateway().await;
    let workers = [serving("a").await, serving("a").await, serving("b").await];
    let first = joined(&gateway, &workers[0], value!({"policy": "random"})).await;
    assert_eq!(policy(&gateway, "a").await, "random");
    patched(&gateway, &first, "round_robin").await;
    assert_eq!(policy(&gateway, "a").await, "round_robin");
    let second = joined(&gateway, &workers[1], value!({})).await;
    joined(&gateway, &workers[2], value!({})).await;
    patched(&gateway, &second, "random").await;
    assert_eq!(policy(&gateway, "a").await, "round_robin");
    patched(&gateway, &first, "least_load").await;
    assert_eq!(policy(&gateway, "a").await, "least_load");
    // In place of all that was said: no label any more.
    let bare = value!({"url": workers[0].url()});
    let reply = send(&gateway, &format!("PUT /workers/{first}"), &bare).await;
    assert_eq!(reply.status, 202);
    assert_eq!(policy(&gateway, "a").await, "cache_aware");
    assert_eq!(policy(&gateway, "b").await, "cache_aware");
}

#[tokio::test]
async fn a_label_said_again_before_a_worker_is_up_decides() {
    let gateway = gateway().await;
    let late = serving("a").await;
    let (url, port) = (late.url(), late.port());
    late.kill().await;
    let id = add(
        &gateway,
        &value!({"url": url, "labels": {"policy": "random"}}),
    )
    .await;
    let again = value!({"url": url, "labels": {"policy": "round_robin"}});
    assert_eq!(add(&gateway, &again).await, id);
    // It reports no model, either.
    let _alive = Worker::listening(port, |request| match request.path() {
        "/server_info" | "/model_info" => json(200, "{}"),
        _ => ok(),
    })
    .await;
    until_status(&gateway, &id, "ready").await;
    assert_eq!(policy(&gateway, "whatever").await, "round_robin");
}

#[tokio::test]
async fn a_worker_that_is_not_up_changes_nothing_for_others() {
    let gateway = gateway().await;
    let workers = [serving("a").await, serving("b").await];
    joined(&gateway, &workers[0], value!({})).await;
    let long = "the same prompt every time ".repeat(40);
    let body = format!(r#"{{"model":"a","prompt":"{long}"}}"#);
    let known = async || {
        let reply = post(&gateway, "/route/explain", &body).await;
        let matched = reply.json()["candidates"][0]["matched_tokens"].as_u64();
        matched.unwrap()
    };
    let reply = post(&gateway, "/v1/completions", &body).await;
    assert_eq!((reply.status, known().await > 0), (200, true));
    let dead = serving("c").await;
    let url = dead.url();
    dead.kill().await;
    let spec = value!({"url": url, "model_id": "nonesuch", "labels": {"policy": "random"}});
    add(&gateway, &spec).await;
    assert_eq!(policy(&gateway, "a").await, "cache_aware");
    assert!(known().await > 0);
    // One that is up has a policy of its own, and leaves the other its own.
    let other = joined(&gateway, &workers[1], value!({})).await;
    assert!(known().await > 0);
    remove(&gateway, &other).await;
    assert!(known().await > 0);
}

#[tokio::test]
async fn worker_added_at_run_time_is_reached_within_twenty_requests_in_turn() {
    let (one, two, three) = (
        Worker::doing(ok()).await,
        Worker::doing(ok()).await,
        Worker::doing(ok()).await,
    );
    let gateway = start(&[&one, &two, &three]).await;
    let added = Worker::doing(ok()).await;
    let body = format!(r#"{{"url":"{}"}}"#, added.url());
    assert_eq!(post(&gateway, "/workers", &body).await.status, 202);
    gateway.has_ready(4).await;
    for _ in 0..20 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
    let received = added.received();
    let requests = received
        .iter()
        .filter(|it| it.path() == "/generate")
        .count();
    assert!((1..=5).contains(&requests), "{requests} of 20");
}
