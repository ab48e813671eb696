//! Which workers take which requests, as roles come and go.

use std::sync::atomic::{AtomicUsize, Ordering};

use gateway::Options;
use serde_json::json as value;

use super::stage::{asked, body, doing, engine, pair_options};
use crate::support::{
    Client, Step, Worker, add, bare, get, json, ok, options, post, posting, raw, send, start_with,
    until,
};

const GENERATE: (&str, &str) = ("/generate", r#"{"text":"x"}"#);

#[tokio::test]
async fn request_waits_for_neither_role_while_one_is_missing() {
    let (prefill, decode) = (doing(ok()).await, doing(ok()).await);
    let gateway = start_with(pair_options(&[], &[])).await;
    let missing = || async { get(&gateway, "/readiness").await.json()["missing_role"].clone() };
    add(
        &gateway,
        &value!({"url": decode.url(), "worker_type": "decode"}),
    )
    .await;
    until(|| async { missing().await == "prefill" }).await;
    let reply = post(&gateway, GENERATE.0, GENERATE.1).await;
    assert_eq!(reply.status, 503);
    assert!(!reply.header("retry-after").is_empty());
    assert!(asked(&decode).is_empty());
    let id = add(
        &gateway,
        &value!({"url": prefill.url(), "worker_type": "prefill"}),
    )
    .await;
    gateway.has_ready(2).await;
    assert_eq!(post(&gateway, GENERATE.0, GENERATE.1).await.status, 200);
    let shown = get(&gateway, &format!("/workers/{id}")).await.json();
    assert_eq!(
        (
            shown["worker_type"].clone(),
            shown["bootstrap_port"].clone()
        ),
        (value!("prefill"), value!(8998))
    );
    let stats = get(&gateway, "/workers").await.json()["stats"].clone();
    let counts = value!({"prefill_count": 1, "decode_count": 1, "regular_count": 0});
    assert_eq!(stats, counts);
    bare(&gateway, &format!("DELETE /workers/{id}")).await;
    until(|| async { missing().await == "prefill" }).await;
}

#[tokio::test]
async fn endpoints_that_pairs_lack_are_refused_by_name_and_tools_go_to_any_worker() {
    let (prefill, decode) = (doing(ok()).await, doing(ok()).await);
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    for path in [
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/v1/classify",
        "/encode",
    ] {
        let reply = post(&gateway, path, r#"{"input":"x"}"#).await;
        assert_eq!(
            (reply.status, reply.code()),
            (501, "not_implemented_for_pairs".to_owned()),
            "{path}"
        );
        assert!(reply.text().contains(path));
    }
    assert!(asked(&prefill).is_empty() && asked(&decode).is_empty());
    assert_eq!(
        post(&gateway, "/v1/tokenize", r#"{"prompt":"x"}"#)
            .await
            .status,
        200
    );
    assert_eq!(asked(&decode).len(), 1);
    assert!(!String::from_utf8_lossy(&asked(&decode)[0].body).contains("bootstrap"));
}

#[tokio::test]
async fn regular_workers_and_pairs_serve_beside_each_other() {
    let (prefill, decode, regular) = (doing(ok()).await, doing(ok()).await, doing(ok()).await);
    let mut options = pair_options(&[&prefill], &[&decode]);
    options.worker_urls = vec![regular.url()];
    let gateway = start_with(options).await;
    for _ in 0..60 {
        assert_eq!(post(&gateway, GENERATE.0, GENERATE.1).await.status, 200);
    }
    assert_eq!(asked(&prefill).len(), asked(&decode).len());
    assert!(asked(&decode).len() >= 20, "{}", asked(&decode).len());
    assert!(asked(&regular).len() >= 8, "{}", asked(&regular).len());
    for request in asked(&regular) {
        assert_eq!(request.body, GENERATE.1.as_bytes());
    }
    assert_eq!(
        post(&gateway, "/v1/embeddings", r#"{"input":"x"}"#)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn request_that_fails_along_one_way_is_tried_along_the_other() {
    let broken = || doing(json(500, "{}"));
    for pairs_fail in [true, false] {
        let (regular, prefill, decode) = if pairs_fail {
            (doing(ok()).await, broken().await, doing(ok()).await)
        } else {
            (broken().await, doing(ok()).await, doing(ok()).await)
        };
        let gateway = start_with(Options {
            worker_urls: options(&[&regular]).worker_urls,
            ..pair_options(&[&prefill], &[&decode])
        })
        .await;
        gateway.has_ready(3).await;
        let faulty = if pairs_fail { &prefill } else { &regular };
        while asked(faulty).is_empty() {
            assert_eq!(post(&gateway, GENERATE.0, GENERATE.1).await.status, 200);
        }
        until(|| async { gateway.in_flight().await == 0 }).await;
    }
}

#[tokio::test]
async fn pair_stays_within_its_transfer_group() {
    let (one, two) = (doing(ok()).await, doing(ok()).await);
    let (three, four) = (doing(ok()).await, doing(ok()).await);
    let gateway = start_with(options(&[])).await;
    for (worker, role, group) in [
        (&one, "prefill", "a"),
        (&two, "prefill", "b"),
        (&three, "decode", "a"),
        (&four, "decode", "a"),
    ] {
        let spec =
            value!({"url": worker.url(), "worker_type": role, "labels": {"transfer_group": group}});
        add(&gateway, &spec).await;
    }
    gateway.has_ready(4).await;
    for _ in 0..8 {
        assert_eq!(post(&gateway, GENERATE.0, GENERATE.1).await.status, 200);
    }
    assert_eq!((asked(&one).len(), asked(&two).len()), (8, 0));
    assert_eq!(asked(&three).len() + asked(&four).len(), 8);
}

#[tokio::test]
async fn client_may_name_either_worker_of_a_pair() {
    let decode = [doing(ok()).await, doing(ok()).await];
    let prefill = [doing(ok()).await, doing(ok()).await];
    let gateway = start_with(pair_options(
        &[&prefill[0], &prefill[1]],
        &[&decode[0], &decode[1]],
    ))
    .await;
    for (worker, others) in [(&prefill[1], &decode), (&decode[0], &prefill)] {
        let line = format!("x-smg-target-worker: {}\r\n", worker.url());
        for _ in 0..4 {
            let request = posting(GENERATE.0, &line, GENERATE.1);
            assert_eq!(raw(&gateway, &request).await.status, 200);
        }
        assert!(asked(worker).len() >= 4);
        assert!(others.iter().all(|other| !asked(other).is_empty()));
    }
}

#[tokio::test]
async fn role_is_switched_once_the_worker_has_nothing_left_and_others_serve_meanwhile() {
    let busy = AtomicUsize::new(0);
    let stays = doing(ok()).await;
    let switches = engine(move |request| match request.path() {
        "/pd_role_switch" if busy.fetch_add(1, Ordering::SeqCst) == 0 => {
            json(400, r#"{"message":"instance is not idle"}"#)
        }
        "/pd_role_switch" => json(200, r#"{"success":true}"#),
        _ => vec![Step::Wait, ok().remove(0)],
    })
    .await;
    let decode = doing(ok()).await;
    let gateway = start_with(pair_options(&[&stays, &switches], &[&decode])).await;
    let line = format!("x-smg-target-worker: {}\r\n", switches.url());
    let mut client = Client::to(&gateway).await;
    client.send(&posting(GENERATE.0, &line, GENERATE.1)).await;
    until(|| async { asked(&switches).len() == 1 }).await;
    let path = format!("POST /pd_role_switch?worker={}", switches.url());
    let role = value!({"new_role": "decode"});
    let switching = send(&gateway, &path, &role);
    let others = async {
        // Nothing new goes there while it waits for its last request.
        let workers = || async { get(&gateway, "/workers").await.text() };
        until(|| async { workers().await.contains("\"withheld\"") }).await;
        for _ in 0..6 {
            assert_eq!(post(&gateway, GENERATE.0, GENERATE.1).await.status, 200);
        }
        assert_eq!(asked(&switches).len(), 1);
        switches.go_on();
    };
    let (reply, ()) = tokio::join!(switching, others);
    assert_eq!(
        (reply.status, reply.json()),
        (200, value!({"success": true}))
    );
    assert_eq!(client.reply().await.status, 200);
    let counts = get(&gateway, "/workers").await.json()["stats"].clone();
    assert_eq!(
        (&counts["prefill_count"], &counts["decode_count"]),
        (&value!(1), &value!(2))
    );
    let before = asked(&stays).len();
    let line = format!("x-smg-target-worker: {}\r\n", switches.url());
    let mut client = Client::to(&gateway).await;
    client.send(&posting(GENERATE.0, &line, GENERATE.1)).await;
    until(|| async { asked(&stays).len() == before + 1 }).await;
    switches.go_on();
    until(|| async {
        switches.go_on();
        gateway.in_flight().await == 0
    })
    .await;
    let unnamed = send(
        &gateway,
        "POST /pd_role_switch",
        &value!({"new_role": "decode"}),
    )
    .await;
    assert_eq!(unnamed.status, 400);
    assert!(unnamed.text().contains("?worker="));
}

#[tokio::test]
async fn worker_whose_engine_refuses_keeps_its_role_and_its_requests() {
    let prefill = engine(|request| match request.path() {
        "/pd_role_switch" => json(400, r#"{"message":"not enabled"}"#),
        _ => ok(),
    })
    .await;
    let decode = doing(ok()).await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let path = format!("POST /pd_role_switch?worker={}", prefill.url());
    let reply = send(&gateway, &path, &value!({"new_role": "decode"})).await;
    assert_eq!(
        (reply.status, &reply.json()["message"]),
        (400, &value!("not enabled"))
    );
    assert_eq!(post(&gateway, GENERATE.0, GENERATE.1).await.status, 200);
}

#[tokio::test]
async fn engine_whose_scheduler_is_slow_to_report_gets_no_request_outside_of_its_role() {
    let slow = |role: &'static str| {
        Worker::listening(0, move |request| match request.path() {
            "/health" => json(200, ""),
            "/model_info" => json(200, &value!({"disaggregation_mode": role}).to_string()),
            "/server_info" => vec![Step::Hang],
            _ => ok(),
        })
    };
    let (prefill, decode) = (slow("prefill").await, slow("decode").await);
    let gateway = start_with(options(&[&prefill, &decode])).await;
    assert_eq!(post(&gateway, GENERATE.0, GENERATE.1).await.status, 200);
    for worker in [&prefill, &decode] {
        let sent = asked(worker).pop().unwrap();
        assert!(body(&sent)["bootstrap_room"].is_u64());
    }
}

#[tokio::test]
async fn request_that_waits_for_a_decode_worker_leaves_its_lane_to_others() {
    let prefill = [doing(ok()).await, doing(ok()).await];
    let decode = doing(vec![Step::Wait, ok().remove(0)]).await;
    let mut options = pair_options(&[&prefill[0], &prefill[1]], &[&decode]);
    (options.max_requests_per_worker, options.queue_size) = (1, 16);
    let gateway = start_with(options).await;
    let ask = || post(&gateway, GENERATE.0, GENERATE.1);
    let others = async {
        until(|| async { asked(&decode).len() == 1 }).await;
        // Every lane answers while requests wait.
        for _ in 0..8 {
            assert_eq!(get(&gateway, "/workers").await.status, 200);
        }
        assert_eq!(asked(&decode).len(), 1);
        until(|| async {
            decode.go_on();
            asked(&decode).len() == 5 && gateway.in_flight().await == 0
        })
        .await;
    };
    let (one, two, three, four, five, ()) = tokio::join!(ask(), ask(), ask(), ask(), ask(), others);
    for reply in [one, two, three, four, five] {
        assert_eq!(reply.status, 200);
    }
}
