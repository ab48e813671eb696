//! SGLang's control routes: to every worker, in order, and 200 only when all agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::join;
use gateway::config::EngineControl;
use serde_json::{Value, json as value};

use crate::support::{
    Received, Running, Step, Worker, get, json, ok, options, post, raw, start, start_with, until,
};

/// A worker that serves a model, and carries out orders by this script.
async fn serving(
    model: &'static str,
    script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
) -> Worker {
    Worker::listening(0, move |request| match request.path() {
        "/health" => json(200, ""),
        "/server_info" => json(200, &format!(r#"{{"served_model_name":"{model}"}}"#)),
        "/ready" => json(404, "{}"),
        _ => script(request),
    })
    .await
}

/// The orders that a worker got, as method and path.
fn orders(worker: &Worker) -> Vec<String> {
    let received = worker.received().into_iter();
    let lines = received.map(|it| it.head.split(" HTTP").next().unwrap().to_owned());
    lines.filter(|line| !line.ends_with("/ready")).collect()
}

fn agrees() -> Vec<Step> {
    json(200, r#"{"success":true,"message":"done","api_key":"k"}"#)
}

#[tokio::test]
async fn every_worker_carries_an_order_out_and_all_must_agree() {
    let (one, two) = (
        serving("m", |_| agrees()).await,
        serving("m", |_| agrees()).await,
    );
    let gateway = start(&[&one, &two]).await;
    let body = r#"{"model_path":"/new","x":1e5}"#;
    let reply = post(&gateway, "/update_weights_from_disk", body).await;
    assert_eq!(reply.status, 200);
    let answer = reply.json();
    assert_eq!(
        (&answer["success"], &answer["message"]),
        (&value!(true), &value!("done"))
    );
    let workers = answer["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    assert_eq!(
        (&workers[0]["worker"], &workers[0]["status"]),
        (&value!(one.url()), &value!(200))
    );
    assert!(!reply.text().contains("\"k\""), "{}", reply.text());
    for worker in [&one, &two] {
        let received = worker.received();
        let order = received
            .iter()
            .find(|it| it.path().starts_with("/update"))
            .unwrap();
        assert_eq!(order.body, body.as_bytes());
    }
}

#[tokio::test]
async fn one_worker_that_refuses_makes_it_a_failure_that_names_it() {
    let refuses = || json(400, r#"{"success":false,"message":"no such path"}"#);
    let (one, two) = (
        serving("m", |_| agrees()).await,
        serving("m", move |_| refuses()).await,
    );
    let gateway = start(&[&one, &two]).await;
    let reply = post(&gateway, "/update_weights_from_disk", "{}").await;
    assert_eq!(
        (reply.status, &*reply.code()),
        (502, "engine_control_failed")
    );
    let answer = reply.json();
    assert_eq!(answer["success"], false);
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains(&two.url()) && message.contains("no such path"),
        "{message}"
    );
    assert_eq!(answer["workers"][1]["status"], 400);
    drop(one);
    // What all refuse alike is the answer.
    let three = serving("m", move |_| refuses()).await;
    let gateway = start(&[&two, &three]).await;
    assert_eq!(
        post(&gateway, "/release_memory_occupation", "{}")
            .await
            .status,
        400
    );
    // No order is repeated.
    assert_eq!(orders(&three), ["POST /release_memory_occupation"]);
}

#[tokio::test]
async fn worker_that_hangs_up_on_an_order_is_not_asked_again() {
    let worker = serving("m", |_| vec![Step::Close]).await;
    let gateway = start(&[&worker]).await;
    let reply = post(&gateway, "/init_weights_update_group", "{}").await;
    assert_eq!(reply.status, 502);
    assert_eq!(orders(&worker), ["POST /init_weights_update_group"]);
}

#[tokio::test]
async fn answer_of_the_only_worker_comes_as_it_is() {
    let worker = serving("m", |request| match request.path() {
        "/start_profile" => vec![Step::Send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nset-cookie: k\r\ncontent-length: 5\r\n\r\nbegun".to_vec(),
        )],
        "/get_weights_by_name?name=a" => json(200, "[1.5,2]"),
        "/freeze_gc" => json(200, "null"),
        "/configure_logging" => json(200, ""),
        _ => json(400, r#"{"message":"no"}"#),
    })
    .await;
    let gateway = start(&[&worker]).await;
    let profile = get(&gateway, "/start_profile").await;
    assert_eq!((profile.status, profile.text()), (200, "begun".to_owned()));
    assert!(profile.all("set-cookie").is_empty());
    let weights = get(&gateway, "/get_weights_by_name?name=a&model=m").await;
    assert_eq!(weights.json(), value!([1.5, 2]));
    for (path, body) in [("/freeze_gc", "null"), ("/configure_logging", "")] {
        assert_eq!(post(&gateway, path, "{}").await.text(), body, "{path}");
    }
    let refused = post(&gateway, "/slow_down", "{}").await;
    assert_eq!(
        (refused.status, refused.json()),
        (400, value!({"message": "no"}))
    );
}

#[tokio::test]
async fn orders_reach_every_worker_in_the_same_sequence_one_at_a_time() {
    let slow = || {
        let reply = agrees();
        let wait = vec![Step::Wait];
        [wait, reply].concat()
    };
    let workers = [
        serving("m", move |_| slow()).await,
        serving("m", move |_| slow()).await,
    ];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let at_work = |count: usize| {
        let workers = &workers;
        move || async move { workers.iter().all(|worker| orders(worker).len() == count) }
    };
    let first = post(&gateway, "/pause_generation", "{}");
    let second = async {
        until(at_work(1)).await;
        post(&gateway, "/update_weights_from_tensor", "{}").await
    };
    let watch = async {
        until(at_work(1)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The second one waits until the first is done at a worker.
        assert!(at_work(1)().await);
        workers[0].go_on();
        until(|| async { orders(&workers[0]).len() == 2 }).await;
        assert_eq!(orders(&workers[1]).len(), 1);
        workers[1].go_on();
        until(at_work(2)).await;
        workers.iter().for_each(Worker::go_on);
    };
    let ((first, second), ()) = join(join(first, second), watch).await;
    assert_eq!((first.status, second.status), (200, 200));
    for worker in &workers {
        assert_eq!(
            orders(worker),
            ["POST /pause_generation", "POST /update_weights_from_tensor"]
        );
    }
}

#[tokio::test]
async fn order_whose_client_leaves_is_carried_out_and_has_its_effect() {
    let worker = serving("m", |_| [vec![Step::Wait], agrees()].concat()).await;
    let gateway = start(&[&worker]).await;
    tokio::select! {
        _ = post(&gateway, "/pause_generation", "{}") => unreachable!("the worker waits"),
        () = until(|| async { orders(&worker).len() == 1 }) => {}
    }
    let paused = async || get(&gateway, "/workers").await.json()["workers"][0]["paused"].clone();
    assert_eq!(paused().await, false);
    worker.go_on();
    until(|| async { paused().await == true }).await;
}

#[tokio::test]
async fn query_narrows_an_order_to_a_model_or_a_worker() {
    let workers = [
        serving("a", |_| agrees()).await,
        serving("a", |_| agrees()).await,
        serving("b", |_| agrees()).await,
    ];
    let gateway = start(&[&workers[0], &workers[1], &workers[2]]).await;
    until(|| async {
        get(&gateway, "/v1/models").await.json()["data"]
            .as_array()
            .unwrap()
            .len()
            == 2
    })
    .await;
    assert_eq!(post(&gateway, "/freeze_gc?model=a", "").await.status, 200);
    let one = format!("/slow_down?worker={}", workers[2].url());
    assert_eq!(post(&gateway, &one, "{}").await.status, 200);
    let counts: Vec<_> = workers
        .iter()
        .map(|worker| {
            orders(worker)
                .into_iter()
                .filter(|it| it.starts_with("POST"))
                .count()
        })
        .collect();
    assert_eq!(counts, [1, 1, 1]);
    for (path, code) in [
        ("/freeze_gc?model=c", "model_not_found"),
        ("/freeze_gc?worker=http://c:1", "WORKER_NOT_FOUND"),
    ] {
        let reply = post(&gateway, path, "").await;
        assert_eq!(
            (reply.status, reply.header("x-smg-error-code")),
            (404, code)
        );
    }
}

/// What the index believes a worker to hold of a prompt.
async fn matched(gateway: &Running) -> u64 {
    let reply = post(gateway, "/route/explain", &prompt()).await.json();
    reply["candidates"][0]["matched_tokens"].as_u64().unwrap()
}

fn prompt() -> String {
    format!(
        r#"{{"text":"{}"}}"#,
        "the same prompt every time ".repeat(40)
    )
}

#[tokio::test]
async fn index_forgets_what_new_weights_flush_and_keeps_what_they_keep() {
    let worker = serving("m", |request| match request.path() {
        "/update_weights_from_ipc" => json(400, "{}"),
        _ => agrees(),
    })
    .await;
    let mut options = options(&[&worker]);
    options.policy = routing::PolicyKind::CacheAware;
    let gateway = start_with(options).await;
    for (path, body, forgets) in [
        (
            "/update_weights_from_disk",
            r#"{"flush_cache":false}"#,
            false,
        ),
        ("/update_weights_from_ipc", "{}", false),
        ("/resume_memory_occupation", "{}", true),
        ("/update_weights_from_disk", "{}", true),
        ("/flush_cache", "", true),
    ] {
        assert_eq!(post(&gateway, "/generate", &prompt()).await.status, 200);
        assert!(matched(&gateway).await > 0);
        post(&gateway, path, body).await;
        assert_eq!(matched(&gateway).await == 0, forgets, "{path} {body}");
    }
}

#[tokio::test]
async fn paused_worker_gets_requests_only_while_all_are_paused() {
    let workers = [
        serving("m", |_| json(200, r#"{"by":0}"#)).await,
        serving("m", |_| json(200, r#"{"by":1}"#)).await,
    ];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let one = format!("/pause_generation?worker={}", workers[0].url());
    assert_eq!(post(&gateway, &one, "{}").await.status, 200);
    for _ in 0..4 {
        assert_eq!(post(&gateway, "/generate", "{}").await.json()["by"], 1);
    }
    let listed = get(&gateway, "/workers").await.json();
    let first = &listed["workers"][0];
    assert_eq!(
        (
            &first["paused"],
            &first["status"],
            &first["circuit_breaker"]
        ),
        (&value!(true), &value!("ready"), &value!("closed"))
    );
    // All are: requests wait in the engines, and are not refused.
    assert_eq!(post(&gateway, "/pause_generation", "{}").await.status, 200);
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    assert_eq!(get(&gateway, "/ping").await.status, 200);
    assert_eq!(
        post(&gateway, "/continue_generation", "{}").await.status,
        200
    );
    let by: Vec<Value> = vec![
        post(&gateway, "/generate", "{}").await.json()["by"].clone(),
        post(&gateway, "/generate", "{}").await.json()["by"].clone(),
    ];
    assert!(by.contains(&value!(0)) && by.contains(&value!(1)), "{by:?}");
}

#[tokio::test]
async fn engine_that_was_paused_elsewhere_is_found_paused_and_not_ill() {
    let paused = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&paused);
    let worker = Worker::listening(0, move |request| {
        let paused = state.load(SeqCst);
        match request.path() {
            "/ready" => json(if paused { 503 } else { 200 }, ""),
            // It generates something, and so hangs.
            "/health" if paused && request.connection > 1 => vec![Step::Hang],
            "/server_info" => json(200, r#"{"served_model_name":"m"}"#),
            _ => json(200, "{}"),
        }
    })
    .await;
    let mut options = options(&[&worker]);
    options.disable_health_check = false;
    (
        options.health_check_interval_secs,
        options.health_check_timeout_secs,
    ) = (1, 1);
    let gateway = start_with(options).await;
    let shows = async |value: bool| {
        let listed = get(&gateway, "/workers").await.json();
        listed["workers"][0]["paused"] == value
    };
    until(|| shows(true)).await;
    let pings = || {
        let received = worker.received().into_iter();
        received.filter(|it| it.path() == "/ping").count()
    };
    // Long enough for probes to take it out.
    until(|| async { pings() > 3 }).await;
    let listed = get(&gateway, "/workers").await.json();
    assert_eq!(listed["workers"][0]["status"], "ready");
    paused.store(false, SeqCst);
    until(|| shows(false)).await;
    assert_eq!(get(&gateway, "/ready").await.status, 200);
}

#[tokio::test]
async fn adapters_loaded_through_the_gateway_are_known_at_once() {
    let state = AtomicBool::new(false);
    let worker = serving("m", move |request| {
        match request.path() {
            "/load_lora_adapter" => state.store(true, SeqCst),
            "/unload_lora_adapter" => state.store(false, SeqCst),
            "/v1/models" if state.load(SeqCst) => {
                return json(200, r#"{"data":[{"id":"m"},{"id":"sql","parent":"m"}]}"#);
            }
            "/v1/models" => return json(200, r#"{"data":[{"id":"m"}]}"#),
            _ => {}
        }
        agrees()
    })
    .await;
    let gateway = start(&[&worker]).await;
    let names = async || {
        let listed = get(&gateway, "/v1/models").await.json();
        let cards = listed["data"].as_array().unwrap();
        cards
            .iter()
            .map(|card| card["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["m"]);
    let body = r#"{"lora_name":"sql","lora_path":"/l"}"#;
    assert_eq!(post(&gateway, "/load_lora_adapter", body).await.status, 200);
    assert_eq!(names().await, ["m", "sql"]);
    assert_eq!(
        post(&gateway, "/unload_lora_adapter", body).await.status,
        200
    );
    assert_eq!(names().await, ["m"]);
}

#[tokio::test]
async fn engine_control_can_be_taken_away_and_needs_the_key() {
    let worker = Worker::doing(ok()).await;
    let mut off = options(&[&worker]);
    off.engine_control = EngineControl::Off;
    let gateway = start_with(off).await;
    let reply = post(&gateway, "/pause_generation", "{}").await;
    assert_eq!((reply.status, &*reply.code()), (404, "unknown_url"));
    let mut keyed = options(&[&worker]);
    keyed.api_key = Some("k".to_owned().into());
    let gateway = start_with(keyed).await;
    assert_eq!(post(&gateway, "/pause_generation", "{}").await.status, 401);
    // Also by GET, and not for pages of other sites.
    let request = "GET /release_memory_occupation HTTP/1.1\r\nhost: g\r\norigin: https://evil\r\nauthorization: Bearer k\r\n\r\n";
    let reply = raw(&gateway, request.as_bytes()).await;
    assert_eq!((reply.status, &*reply.code()), (403, "cross_site_request"));
    assert!(orders(&worker).is_empty(), "{:?}", orders(&worker));
}

#[tokio::test]
async fn slash_too_many_is_redirected_as_sglangs_server_does() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let reply = post(&gateway, "/v1/completions/?a=b", "{}").await;
    assert_eq!(
        (reply.status, reply.header("location")),
        (307, "/v1/completions?a=b")
    );
    assert_eq!(get(&gateway, "/nowhere/").await.status, 404);
    assert_eq!(get(&gateway, "/Health").await.status, 404);
}
