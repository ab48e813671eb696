//! What both workers of a pair are given.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::stage::{aborted, asked, body, doing, engine, pair_options};
use crate::support::{
    Client, Received, Step, Worker, json as answering, ok, post, posting, raw, start_with, until,
};

async fn pair() -> (Worker, Worker) {
    (doing(ok()).await, doing(ok()).await)
}

#[tokio::test]
async fn both_legs_get_the_same_room_and_the_clients_bytes_before_it() {
    let (prefill, decode) = pair().await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let sent = r#"{"text":"a \u00e9", "x":1.0e2,"stream":false}"#;
    for path in [
        "/generate",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
    ] {
        assert_eq!(post(&gateway, path, sent).await.status, 200, "{path}");
    }
    let (at_prefill, at_decode) = (asked(&prefill), asked(&decode));
    let mut rooms = BTreeSet::new();
    for (one, other) in at_prefill.iter().zip(&at_decode) {
        assert_eq!(one.path(), other.path());
        assert_eq!(one.body, other.body);
        assert!(one.body.starts_with(&sent.as_bytes()[..sent.len() - 1]));
        let body = body(one);
        assert_eq!(body["bootstrap_host"], "127.0.0.1");
        assert_eq!(body["bootstrap_port"], 8997);
        let room = body["bootstrap_room"].as_i64().unwrap();
        assert!(room > 0 && rooms.insert(room));
        assert_eq!(body["rid"].as_str().unwrap().len(), 32);
    }
    assert_eq!((rooms.len(), at_decode.len()), (4, 4));
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn fields_and_headers_that_steer_engines_do_not_pass_from_clients() {
    let (prefill, decode) = pair().await;
    let mut options = pair_options(&[&prefill], &[&decode]);
    options.forward_override_headers = true;
    let gateway = start_with(options).await;
    let sent =
        r#"{"bootstrap_room":[1,2],"text":"x","bootstrap\u005fhost":"evil","routed_dp_rank":9}"#;
    let lines = "x-override-bootstrap-room: 99\r\nx-override-rid: mine\r\nx-data-parallel-rank: 3\r\nx-other: 1\r\n";
    let reply = raw(&gateway, &posting("/generate", lines, sent)).await;
    assert_eq!(reply.status, 200);
    for worker in [&prefill, &decode] {
        let request = &asked(worker)[0];
        assert!(!request.head.contains("x-override"), "{}", request.head);
        assert!(request.all("x-data-parallel-rank").is_empty());
        assert_eq!(request.all("x-other"), ["1"]);
        let text = String::from_utf8(request.body.clone()).unwrap();
        assert_eq!(text.matches("bootstrap").count(), 3, "{text}");
        let body = body(request);
        assert_eq!(body["bootstrap_host"], "127.0.0.1");
        assert!(body["bootstrap_room"].is_u64() && body.get("routed_dp_rank").is_none());
    }
}

#[tokio::test]
async fn clients_request_id_stays() {
    let (prefill, decode) = pair().await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    post(&gateway, "/generate", r#"{"text":"x","rid":"mine"}"#).await;
    assert_eq!(body(&asked(&decode)[0])["rid"], "mine");
}

#[tokio::test]
async fn attempts_behind_the_first_have_other_ids_than_the_client_gives() {
    let first = |request: &Received| body(request)["rid"] == "mine";
    let refuses_first = move |request: &Received| {
        if first(request) {
            answering(500, "{}")
        } else {
            ok()
        }
    };
    let holds_first = move |request: &Received| {
        if first(request) {
            vec![Step::Hang]
        } else {
            ok()
        }
    };
    let (prefill, decode) = (engine(refuses_first).await, engine(holds_first).await);
    let mut options = pair_options(&[&prefill], &[&decode]);
    options.retry_initial_backoff_ms = 1;
    let gateway = start_with(options).await;
    let sent = r#"{"rid":"mine","text":"x"}"#;
    assert_eq!(post(&gateway, "/generate", sent).await.status, 200);
    let again = asked(&prefill).pop().unwrap();
    let text = String::from_utf8(again.body.clone()).unwrap();
    assert_eq!(text.matches("\"rid\"").count(), 1, "{text}");
    let rid = body(&again)["rid"].clone();
    assert_eq!(rid.as_str().unwrap().len(), 32, "{text}");
    assert_eq!(body(&asked(&decode).pop().unwrap())["rid"], rid);
}

#[tokio::test]
async fn list_of_one_prompt_is_ended_by_the_id_that_engines_count() {
    let (prefill, decode) = (doing(ok()).await, doing(vec![Step::Hang]).await);
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    for sent in [r#"{"text":["x"],"rid":"mine"}"#, r#"{"prompt":["x"]}"#] {
        let before = asked(&decode).len();
        let mut client = Client::to(&gateway).await;
        client.send(&posting("/generate", "", sent)).await;
        until(|| async { asked(&decode).len() > before }).await;
        drop(client);
        let rid = body(&asked(&decode).pop().unwrap())["rid"].clone();
        let id = format!("{}_0", rid.as_str().unwrap());
        until(|| async { aborted(&decode).contains(&id) }).await;
    }
}

#[tokio::test]
async fn each_worker_gets_its_own_key() {
    let (prefill, decode) = pair().await;
    let gateway = start_with(pair_options(&[], &[])).await;
    for (worker, role, key) in [(&prefill, "prefill", "pk"), (&decode, "decode", "dk")] {
        let spec =
            json!({"url": worker.url(), "worker_type": role, "api_key": key, "bootstrap_port": 9});
        crate::support::add(&gateway, &spec).await;
    }
    gateway.has_ready(2).await;
    assert_eq!(
        post(&gateway, "/generate", r#"{"text":"x"}"#).await.status,
        200
    );
    assert_eq!(asked(&prefill)[0].all("authorization"), ["Bearer pk"]);
    assert_eq!(asked(&decode)[0].all("authorization"), ["Bearer dk"]);
    let sent: Value = body(&asked(&decode)[0]);
    assert_eq!(sent["bootstrap_port"], 9);
}
