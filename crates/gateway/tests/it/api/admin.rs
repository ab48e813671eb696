//! Health, information and what is asked of every worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Step, Worker, get, json, ok, options, post, raw, start, start_with, until};

#[tokio::test]
async fn information_comes_from_a_worker_in_both_spellings() {
    let worker = Worker::listening(0, |request| match request.path() {
        "/get_model_info" => json(200, r#"{"model_path":"/old"}"#),
        "/server_info" => json(200, r#"{"version":"0.5"}"#),
        "/health" | "/health_generate" => json(200, ""),
        _ => json(404, r#"{"detail":"Not Found"}"#),
    })
    .await;
    let gateway = start(&[&worker]).await;
    for path in ["/get_model_info", "/model_info"] {
        assert_eq!(
            get(&gateway, path).await.json()["model_path"],
            "/old",
            "{path}"
        );
    }
    for path in ["/get_server_info", "/server_info"] {
        assert_eq!(get(&gateway, path).await.json()["version"], "0.5", "{path}");
    }
    assert_eq!(get(&gateway, "/health_generate").await.status, 200);
    assert_eq!(get(&gateway, "/liveness").await.text(), "OK");
}

#[tokio::test]
async fn models_are_listed_once() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let reply = get(&gateway, "/v1/models").await;
    assert_eq!(reply.header("content-type"), "application/json");
    let list = reply.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    assert_eq!(list["data"][0]["id"], "test-model");
}

#[tokio::test]
async fn loads_come_in_both_shapes() {
    let new = Worker::listening(0, |request| match request.path().split('?').next() {
        Some("/v1/loads") => json(
            200,
            r#"{"loads":[{"dp_rank":0,"num_running_reqs":2,"num_used_tokens":7}]}"#,
        ),
        _ => ok(),
    })
    .await;
    let old = Worker::listening(0, |request| match request.path() {
        "/get_load" => json(
            200,
            r#"[{"dp_rank":0,"num_tokens":3},{"dp_rank":1,"num_tokens":4}]"#,
        ),
        "/health" => ok(),
        _ => json(404, "{}"),
    })
    .await;
    let silent = Worker::listening(0, |request| {
        if request.path() == "/health" {
            ok()
        } else {
            vec![Step::Close]
        }
    })
    .await;
    let gateway = start(&[&new, &old, &silent]).await;
    for path in ["/get_loads", "/v1/loads"] {
        let reply = get(&gateway, path).await.json();
        let loads: Vec<_> = reply["workers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| w["load"].as_i64().unwrap())
            .collect();
        assert_eq!(loads, [7, 7, -1]);
        assert_eq!(reply["dp_rank_count"], 3);
        assert_eq!(reply["loads"][0]["worker"], new.url());
        assert_eq!(reply["aggregate"]["total_running_reqs"], 2);
    }
}

#[tokio::test]
async fn a_partly_flushed_fleet_is_206() {
    let good = Worker::doing(ok()).await;
    let gateway = start(&[&good]).await;
    let reply = post(&gateway, "/flush_cache", "").await;
    assert_eq!(
        (reply.status, &reply.json()["status"]),
        (200, &"success".into())
    );
    let bad = Worker::doing(json(400, "busy")).await;
    let gateway = start(&[&good, &bad]).await;
    let reply = post(&gateway, "/flush_cache", "").await;
    let json = reply.json();
    assert_eq!(
        (reply.status, &json["status"]),
        (206, &"partial_success".into())
    );
    let failed = serde_json::json!([{"worker": bad.url(), "error": "400 Bad Request"}]);
    assert_eq!(json["failed"], failed);
    assert_eq!(json["workers_flushed"], 1);
}

#[tokio::test]
async fn engine_metrics_are_merged() {
    let page = "# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{model=\"m\"} 3\n";
    let worker = Worker::doing(json(200, page)).await;
    let gateway = start(&[&worker]).await;
    let text = get(&gateway, "/engine_metrics").await.text();
    let sample = format!(
        "sglang_num_running_reqs{{worker_addr=\"{}\",model=\"m\"}} 3",
        worker.url()
    );
    assert!(text.contains(&sample), "{text}");
}

#[tokio::test]
async fn a_stored_response_is_found_wherever_it_is() {
    let without = Worker::doing(json(404, r#"{"detail":"Not Found"}"#)).await;
    let with = Worker::doing(json(200, r#"{"id":"resp_1"}"#)).await;
    let gateway = start(&[&without, &with]).await;
    assert_eq!(
        get(&gateway, "/v1/responses/resp_1").await.json()["id"],
        "resp_1"
    );
    assert_eq!(
        post(&gateway, "/v1/responses/resp_1/cancel", "{}")
            .await
            .status,
        200
    );
    let cancel = with.received().pop().unwrap();
    assert_eq!(
        (cancel.path(), cancel.body.len()),
        ("/v1/responses/resp_1/cancel", 0)
    );

    for odd in [
        "x%2F..%2F..%2Fflush_cache",
        "..%5Cflush_cache",
        "%2e%2e",
        ".",
    ] {
        let path = format!("/v1/responses/{odd}");
        assert_eq!(get(&gateway, &path).await.status, 404, "{odd}");
    }
    let seen = without.received();
    assert!(seen.iter().all(|it| !it.path().contains("flush")));
    let encoded = "/v1/responses/a%20b%3Fc/cancel?x=1";
    post(&gateway, encoded, "{}").await;
    assert_eq!(without.received().pop().unwrap().path(), encoded);

    let gateway = start(&[&without]).await;
    assert_eq!(get(&gateway, "/v1/responses/resp_1").await.status, 404);
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    for _ in 0..3 {
        post(&gateway, "/v1/chat/completions", "{}").await;
    }
    get(&gateway, "/nowhere").await;
    let page = gateway.metrics().await;
    let url = worker.url();
    for line in [
        r#"smg_http_requests_total{method="POST",path="/v1/chat/completions"} 3"#.to_owned(),
        r#"smg_http_responses_total{error_code="",path="/v1/chat/completions",status_code="200"} 3"#.to_owned(),
        r#"smg_http_responses_total{error_code="unknown_url",path="other",status_code="404"} 1"#.to_owned(),
        r#"smg_router_requests_total{backend_type="regular",connection_mode="http",endpoint="chat",model="test-model",router_type="http",streaming="false"} 3"#.to_owned(),
        r#"smg_worker_selection_total{connection_mode="http",model="test-model",policy="round_robin",worker_type="regular"} 3"#.to_owned(),
        format!(r#"smg_worker_health{{worker="{url}"}} 1"#),
        format!(r#"smg_worker_requests_active{{worker="{url}"}} 0"#),
    ] {
        assert!(page.contains(&line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn head_of_a_stored_response_asks_workers_with_get() {
    let worker = Worker::doing(json(200, r#"{"id":"resp_1"}"#)).await;
    let gateway = start(&[&worker]).await;
    let mut client = crate::support::Client::to(&gateway).await;
    client
        .send(b"HEAD /v1/responses/resp_1 HTTP/1.1\r\nhost: g\r\n\r\n")
        .await;
    assert!(
        client
            .read_until("\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(worker.received()[0].head.starts_with("GET "));
}

#[tokio::test]
async fn no_header_of_a_workers_private_answer_reaches_a_client() {
    let answer = "HTTP/1.1 200 OK\r\nx-api-key: theirs\r\nset-cookie: theirs\r\nserver: theirs\r\n\
        content-type: theirs\r\ncontent-length: 2\r\n\r\n{}";
    let worker = Worker::listening(0, move |_| vec![Step::Send(answer.into())]).await;
    let gateway = start(&[&worker]).await;
    for path in [
        "/health_generate",
        "/model_info",
        "/server_info",
        "/engine_metrics",
        "/get_loads",
        "/v1/loads",
    ] {
        let reply = get(&gateway, path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(!format!("{:?}", reply.headers).contains("theirs"), "{path}");
    }
    for path in ["/flush_cache", "/abort_request"] {
        let reply = post(&gateway, path, "{}").await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(!format!("{:?}", reply.headers).contains("theirs"), "{path}");
    }
}

/// A worker that answers nothing any more once the flag is set.
async fn freezing(frozen: &Arc<AtomicBool>) -> Worker {
    let frozen = Arc::clone(frozen);
    Worker::listening(0, move |_| {
        if frozen.load(SeqCst) {
            vec![Step::Hang]
        } else {
            ok()
        }
    })
    .await
}

#[tokio::test]
async fn worker_found_silent_by_one_question_holds_up_neither_the_next_nor_requests() {
    let frozen = Arc::default();
    let well = Worker::doing(ok()).await;
    let gateway = start(&[&freezing(&frozen).await, &well]).await;
    frozen.store(true, SeqCst);
    assert_eq!(get(&gateway, "/server_info").await.status, 200);
    let next = async {
        assert_eq!(get(&gateway, "/server_info").await.status, 200);
        for _ in 0..4 {
            assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
        }
    };
    let taken = tokio::time::timeout(Duration::from_millis(900), next).await;
    taken.expect("less than the second after which another worker is asked");
}

#[tokio::test]
async fn frozen_worker_is_reported_by_fan_outs_after_seconds() {
    let frozen = Arc::default();
    let silent = freezing(&frozen).await;
    let well = Worker::scripted(|request| match request.path() {
        "/v1/responses/resp_2" => json(404, r#"{"detail":"Not Found"}"#),
        "/metrics" => json(200, "m 1\n"),
        _ => json(200, r#"[{"num_tokens":3}]"#),
    })
    .await;
    let gateway = start(&[&silent, &well]).await;
    frozen.store(true, SeqCst);
    let begun = Instant::now();
    let (found, absent, loads, metrics, aborted) = tokio::join!(
        async {
            let found = get(&gateway, "/v1/responses/resp_1").await;
            (found, begun.elapsed())
        },
        get(&gateway, "/v1/responses/resp_2"),
        get(&gateway, "/get_loads"),
        get(&gateway, "/engine_metrics"),
        post(&gateway, "/abort_request", r#"{"rid":"r"}"#),
    );
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let (found, took) = found;
    assert_eq!((found.status, absent.status), (200, 404));
    assert!(took < Duration::from_secs(3), "{took:?}");
    let shown = loads.json()["workers"].clone();
    let expected = serde_json::json!([
        {"worker": silent.url(), "load": -1},
        {"worker": well.url(), "load": 3},
    ]);
    assert_eq!(shown, expected);
    let sample = format!("m{{worker_addr=\"{}\"}} 1\n", well.url());
    assert_eq!((metrics.text(), aborted.status), (sample, 200));
}

#[tokio::test]
async fn information_comes_from_the_next_worker_when_the_first_refuses_to_give_it() {
    for refusal in [401, 404, 500] {
        let refuses = Worker::listening(0, move |request| match request.path() {
            "/health" => ok(),
            _ => json(refusal, r#"{"tp_size":1}"#),
        })
        .await;
        let gives = Worker::listening(0, |_| json(200, r#"{"tp_size":2}"#)).await;
        let gateway = start(&[&refuses, &gives]).await;
        let info = get(&gateway, "/server_info").await;
        assert_eq!((info.status, &info.json()["tp_size"]), (200, &2.into()));
        let gateway = start(&[&refuses, &refuses]).await;
        assert_eq!(get(&gateway, "/server_info").await.status, refusal);
    }
}

#[tokio::test]
async fn generation_checks_go_to_the_workers_in_turn() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    until(|| async {
        assert_eq!(get(&gateway, "/health_generate").await.status, 200);
        workers.iter().all(|worker| !worker.received().is_empty())
    })
    .await;
}

/// A worker's key, and what shows that something of the worker's has come through unread.
const CANARY: &str = "c4n4ry-s3cret";

#[tokio::test]
async fn no_secret_of_a_worker_reaches_a_client_with_or_without_a_key() {
    let info = format!(
        r#"{{"api_key":"{CANARY}","admin_api_key":"{CANARY}","launch_command":"serve {CANARY}",
            "tp_size":1,"unheard_of":"{CANARY}","internal_states":[{{"hf_token":"{CANARY}",
            "last_gen_throughput":2.5,"memory_usage":{{"password":"{CANARY}"}}}}],
            "loads":[{{"num_running_reqs":1,"api_key":"{CANARY}"}}],"data":[{{"id":"m","unheard_of":"{CANARY}","root":{{"api_key":"{CANARY}"}}}}]}}"#
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-api-key: {CANARY}\r\n\
         set-cookie: {CANARY}\r\ncontent-length: {}\r\n\r\n",
        info.len()
    );
    let steps = vec![Step::Send((head + &info).into_bytes())];
    let worker = Worker::listening(0, move |_| steps.clone()).await;
    let mut options = options(&[&worker]);
    options.api_key = Some(CANARY.to_owned().into());
    let gateway = start_with(options).await;
    for key in ["", "wrong", CANARY] {
        for path in [
            "/health",
            "/liveness",
            "/readiness",
            "/health_generate",
            "/model_info",
            "/get_model_info",
            "/server_info",
            "/get_server_info",
            "/v1/models",
            "/v1/models/m",
            "/workers",
            "/list_workers",
            "/get_loads",
            "/v1/loads",
            "/debug/limits",
            "/debug/decisions",
        ] {
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {key}\r\n\r\n");
            let reply = raw(&gateway, request.as_bytes()).await;
            let seen = format!("{:?} {}", reply.headers, reply.text());
            assert!(!seen.contains(CANARY), "{path} with {key:?}: {seen}");
        }
    }
    let shown = get(&gateway, "/server_info").await.json();
    assert_eq!(shown["tp_size"], 1);
    assert_eq!(shown["internal_states"][0]["last_gen_throughput"], 2.5);
}

#[tokio::test]
async fn frozen_worker_holds_up_no_question_that_another_can_answer() {
    let frozen = Worker::listening(0, |request| match request.path() {
        "/health" => ok(),
        _ => vec![Step::Hang],
    })
    .await;
    let well = Worker::doing(json(200, r#"{"tp_size":1}"#)).await;
    let gateway = start(&[&frozen, &well]).await;
    for path in ["/server_info", "/model_info", "/health_generate"] {
        let begun = Instant::now();
        assert_eq!(get(&gateway, path).await.status, 200, "{path}");
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{path}: {:?}",
            begun.elapsed()
        );
    }
}

#[tokio::test]
async fn clients_that_ask_for_a_generation_check_together_cost_one() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let asked = (0..10).map(|_| get(&gateway, "/health_generate"));
    for reply in futures_util::future::join_all(asked).await {
        assert_eq!(reply.status, 200);
    }
    let received = worker.received();
    let checks = received.iter().filter(|it| it.path() == "/health_generate");
    assert_eq!(checks.count(), 1);
}
