//! Pairs whose values are in headers, beside the client's untouched body.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use gateway::Options;
use gateway::config::PdMetadata;
use serde_json::{Value, json as value};
use sim::{Role, SimOptions, SimWorker};

use super::stage::{aborted, asked, body, doing, obeying, pair_options};
use crate::support::{
    Client, Received, Step, Worker, add, get, json, ok, options, post, posting, raw, start_with,
    until,
};

fn on() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

async fn pair() -> (Worker, Worker) {
    (
        obeying(&on(), |_| ok()).await,
        obeying(&on(), |_| ok()).await,
    )
}

/// What a leg has in a header of the gateway's.
fn line<'a>(request: &'a Received, name: &str) -> &'a str {
    let values = request.all(&format!("x-override-{name}"));
    assert!(values.len() <= 1, "{}", request.head);
    values.first().copied().unwrap_or_default()
}

fn room(request: &Received) -> u64 {
    line(request, "bootstrap-room").parse().unwrap()
}

fn is_by_headers(request: &Received) -> bool {
    let in_body = body(request).get("bootstrap_room").is_some();
    assert_ne!(
        in_body,
        request.head.contains("x-override-"),
        "{}",
        request.head
    );
    !in_body
}

/// An engine: it refuses a request without a room, in a stream behind its head, and waits for a
/// partner that refuses it.
fn engine(
    obeys: &Arc<AtomicBool>,
    partner_obeys: &Arc<AtomicBool>,
) -> impl Fn(&Received) -> Vec<Step> + Send + Sync + use<> {
    let (obeys, partner_obeys) = (Arc::clone(obeys), Arc::clone(partner_obeys));
    move |request| {
        let body = body(request);
        if body.get("bootstrap_room").is_some() {
            ok()
        } else if !obeys.load(SeqCst) {
            no_room(body["stream"] == true)
        } else if partner_obeys.load(SeqCst) {
            ok()
        } else {
            vec![Step::Hang]
        }
    }
}

fn no_room(in_stream: bool) -> Vec<Step> {
    let message = "Invalid request: Disaggregated request received without bootstrap room id. recv_req.rid='7'";
    let error = value!({"error": {"message": message, "code": 400}});
    if !in_stream {
        return json(400, &error.to_string());
    }
    let events = format!("data: {error}\n\ndata: [DONE]\n\n");
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n",
        events.len()
    );
    vec![Step::Send((head + &events).into_bytes())]
}

#[tokio::test]
async fn body_passes_untouched_where_both_workers_obey_headers() {
    let (prefill, decode) = pair().await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let sent = r#" {"text":"a \u00e9", "x":1.0e2,"stream":false } "#;
    for path in ["/generate", "/v1/chat/completions", "/v1/messages"] {
        assert_eq!(post(&gateway, path, sent).await.status, 200, "{path}");
    }
    let (at_prefill, at_decode) = (asked(&prefill), asked(&decode));
    let mut rooms = BTreeSet::new();
    for (one, other) in at_prefill.iter().zip(&at_decode) {
        assert_eq!(
            (&*one.body, &*other.body),
            (sent.as_bytes(), sent.as_bytes())
        );
        for name in ["bootstrap-host", "bootstrap-port", "bootstrap-room", "rid"] {
            assert_eq!(line(one, name), line(other, name));
        }
        assert_eq!(line(one, "bootstrap-host"), "127.0.0.1");
        assert_eq!(line(one, "bootstrap-port"), "8997");
        assert_eq!(line(one, "rid").len(), 32);
        assert!((1..1 << 63).contains(&room(one)) && rooms.insert(room(one)));
        assert!(!one.head.contains("dp-rank"));
    }
    assert_eq!((rooms.len(), at_decode.len()), (3, 3));
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn body_is_used_where_one_worker_ignores_headers_or_the_option_says_so() {
    let (prefill, decode) = pair().await;
    let ignoring = doing(ok()).await;
    let mut by_body = pair_options(&[&prefill], &[&decode]);
    by_body.pd_metadata = PdMetadata::Body;
    for options in [
        pair_options(&[&prefill], &[&ignoring]),
        pair_options(&[&ignoring], &[&decode]),
        by_body,
    ] {
        let asks = options.pd_metadata != PdMetadata::Body;
        let gateway = start_with(options).await;
        let shown = get(&gateway, "/workers").await.json()["workers"].clone();
        for worker in shown.as_array().unwrap() {
            let expected = value!(worker["url"] != ignoring.url().as_str());
            let found = worker.get("header_overrides");
            assert_eq!(found, asks.then_some(&expected), "{worker}");
        }
        assert_eq!(
            post(&gateway, "/generate", r#"{"text":"x"}"#).await.status,
            200
        );
    }
    for worker in [&prefill, &decode, &ignoring] {
        assert_eq!(asked(worker).len(), 2);
        assert!(!asked(worker).iter().any(is_by_headers));
    }
}

#[tokio::test]
async fn body_is_used_for_what_headers_cannot_do() {
    let (prefill, decode) = pair().await;
    let mut options = pair_options(&[&prefill], &[&decode]);
    for wanted in [PdMetadata::Auto, PdMetadata::Headers] {
        options.pd_metadata = wanted;
        let gateway = start_with(options.clone()).await;
        for (path, sent) in [
            // These endpoints read no headers.
            ("/v1/completions", r#"{"prompt":"x"}"#),
            ("/v1/responses", r#"{"input":"x"}"#),
            ("/invocations", r#"{"messages":[]}"#),
            // The prefill worker's answer is wanted whole.
            (
                "/generate",
                r#"{"text":"x","return_logprob":true,"logprob_start_len":0}"#,
            ),
            // Something must be cut.
            ("/generate", r#"{"text":"x","bootstrap_room":[7]}"#),
            ("/generate", r#"{"text":"x","routed_dp_rank":1}"#),
        ] {
            assert_eq!(
                post(&gateway, path, sent).await.status,
                200,
                "{path} {sent}"
            );
            for worker in [&prefill, &decode] {
                let last = asked(worker).pop().unwrap();
                assert!(!is_by_headers(&last), "{path} {sent}");
                assert!(body(&last)["bootstrap_room"].is_u64());
                assert!(body(&last).get("routed_dp_rank").is_none());
            }
        }
    }
}

#[tokio::test]
async fn clients_headers_that_steer_engines_do_not_pass_beside_the_gateways() {
    let (prefill, decode) = pair().await;
    let mut options = pair_options(&[&prefill], &[&decode]);
    options.forward_override_headers = true;
    let gateway = start_with(options).await;
    let lines = "x-override-bootstrap-room: 99\r\nX-Override-Rid: mine\r\nx-override-priority: 9\r\n\
                 x-override-routed-dp-rank: 3\r\nx-data-parallel-rank: 3\r\nx-other: 1\r\n";
    let reply = raw(&gateway, &posting("/generate", lines, r#"{"text":"x"}"#)).await;
    assert_eq!(reply.status, 200);
    for worker in [&prefill, &decode] {
        let request = &asked(worker)[0];
        assert_eq!(
            request.head.matches("x-override-").count(),
            4,
            "{}",
            request.head
        );
        assert_eq!(request.all("x-other"), ["1"]);
        assert!(room(request) != 99 && line(request, "rid").len() == 32);
        assert!(request.all("x-data-parallel-rank").is_empty());
    }
}

#[tokio::test]
async fn clients_request_id_stays_in_its_body_and_ends_the_request() {
    let prefill = obeying(&on(), |_| ok()).await;
    let decode = obeying(&on(), |_| vec![Step::Hang]).await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let mut client = Client::to(&gateway).await;
    client
        .send(&posting("/generate", "", r#"{"text":"x","rid":"mine"}"#))
        .await;
    until(|| async { !asked(&decode).is_empty() }).await;
    drop(client);
    assert_eq!(line(&asked(&decode)[0], "rid"), "");
    until(|| async { aborted(&decode).contains(&"mine".to_owned()) }).await;
}

#[tokio::test]
async fn prompts_of_a_list_are_ended_by_the_ids_that_engines_count() {
    let prefill = obeying(&on(), |_| ok()).await;
    let decode = obeying(&on(), |_| vec![Step::Hang]).await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let mut rooms = Vec::new();
    for (sent, prompts) in [
        (r#"{"text":["x","y","z"]}"#, 3),
        (r#"{"input_ids":[[1]]}"#, 1),
    ] {
        let before = asked(&decode).len();
        let mut client = Client::to(&gateway).await;
        client.send(&posting("/generate", "", sent)).await;
        until(|| async { asked(&decode).len() > before }).await;
        drop(client);
        let request = asked(&decode).pop().unwrap();
        assert_eq!(request.body, sent.as_bytes());
        let rid = line(&request, "rid").to_owned();
        let ids: BTreeSet<_> = (0..prompts).map(|at| format!("{rid}_{at}")).collect();
        until(|| async {
            aborted(&decode)
                .into_iter()
                .filter(|it| it.starts_with(&rid))
                .collect::<BTreeSet<_>>()
                == ids
        })
        .await;
        rooms.push(room(&request));
    }
    // The low bits count: those of the list are all taken.
    assert!(rooms[1] % (1 << 33) >= rooms[0] % (1 << 33) + 3);
}

#[tokio::test]
async fn later_attempts_have_other_rooms_and_ids() {
    // The first attempt has the client's id.
    let is_first = |request: &Received| line(request, "rid").is_empty();
    let (prefill, decode) = (
        obeying(
            &on(),
            move |it| if is_first(it) { json(500, "{}") } else { ok() },
        )
        .await,
        obeying(
            &on(),
            move |it| if is_first(it) { vec![Step::Hang] } else { ok() },
        )
        .await,
    );
    let mut options = pair_options(&[&prefill], &[&decode]);
    options.retry_initial_backoff_ms = 1;
    let gateway = start_with(options).await;
    let sent = r#"{"rid":"mine","text":"x"}"#;
    assert_eq!(post(&gateway, "/generate", sent).await.status, 200);
    let at_prefill = asked(&prefill);
    let [first, again] = &at_prefill[..] else {
        unreachable!("{at_prefill:?}")
    };
    assert_eq!((line(first, "rid"), line(again, "rid").len()), ("", 32));
    assert_ne!(room(first), room(again));
    assert_eq!(again.body, sent.as_bytes());
    let at_decode = asked(&decode).pop().unwrap();
    assert_eq!(line(&at_decode, "rid"), line(again, "rid"));
    assert_eq!(room(&at_decode), room(again));
}

#[tokio::test]
async fn ranks_go_in_headers() {
    let ranked = |role: &'static str, ranks: usize| {
        Worker::listening(0, move |request| match request.path() {
            "/health" | "/abort_request" => json(200, ""),
            "/server_info" => json(
                200,
                &value!({"served_model_name": "m", "dp_size": ranks, "disaggregation_mode": role})
                    .to_string(),
            ),
            "/model_info" => json(200, "{}"),
            "/v1/models" | "/ready" => json(404, "{}"),
            _ if request.asks_for_overrides() => {
                json(400, "invalid x-override-bootstrap-room header '?'")
            }
            _ => ok(),
        })
    };
    let (prefill, decode) = (ranked("prefill", 3).await, ranked("decode", 2).await);
    let gateway = start_with(Options {
        dp_aware: true,
        ..options(&[])
    })
    .await;
    for worker in [&prefill, &decode] {
        add(&gateway, &value!({"url": worker.url()})).await;
    }
    gateway.has_ready(5).await;
    for _ in 0..12 {
        assert_eq!(
            post(&gateway, "/generate", r#"{"text":"x"}"#).await.status,
            200
        );
    }
    let ranks_at = |requests: &[Received]| {
        let ranks = requests
            .iter()
            .map(|it| line(it, "routed-dp-rank").to_owned());
        ranks.collect::<BTreeSet<_>>().len()
    };
    let (at_prefill, at_decode) = (asked(&prefill), asked(&decode));
    assert_eq!((ranks_at(&at_prefill), ranks_at(&at_decode)), (3, 2));
    for one in &at_prefill {
        let other = at_decode.iter().find(|it| room(it) == room(one)).unwrap();
        let rank: u64 = line(one, "routed-dp-rank").parse().unwrap();
        assert_eq!(room(one) % 3, rank);
        for leg in [one, other] {
            assert_eq!(line(leg, "disagg-prefill-dp-rank"), rank.to_string());
            assert_eq!(leg.body, br#"{"text":"x"}"#);
        }
    }
}

#[tokio::test]
async fn engine_that_comes_back_without_overrides_gets_bodies_and_with_them_headers() {
    let (obeys, status) = (on(), Arc::new(AtomicUsize::new(200)));
    let (state, reply) = (Arc::clone(&status), engine(&obeys, &on()));
    let flag = Arc::clone(&obeys);
    let decode = Worker::listening(0, move |request| match request.path() {
        "/health" => json(state.load(SeqCst) as u16, ""),
        "/server_info" | "/model_info" => json(200, r#"{"served_model_name":"test-model"}"#),
        "/v1/models" | "/ready" | "/abort_request" => json(404, "{}"),
        _ if request.asks_for_overrides() && flag.load(SeqCst) => {
            json(400, "invalid x-override-bootstrap-room header '?'")
        }
        _ if request.asks_for_overrides() => json(400, "no prompt"),
        _ => reply(request),
    })
    .await;
    let prefill = obeying(&on(), |_| ok()).await;
    let mut options = pair_options(&[&prefill], &[&decode]);
    (
        options.health_check_interval_secs,
        options.health_failure_threshold,
    ) = (1, 1);
    options.disable_retries = true;
    let gateway = start_with(options).await;
    for obeyed in [true, false, true] {
        status.store(503, SeqCst);
        until(|| async { get(&gateway, "/readiness").await.status == 503 }).await;
        obeys.store(obeyed, SeqCst);
        status.store(200, SeqCst);
        gateway.has_ready(2).await;
        // It takes requests at once, and is asked a moment later; meanwhile the body serves.
        until(|| async {
            assert_eq!(
                post(&gateway, "/generate", r#"{"text":"x"}"#).await.status,
                200
            );
            is_by_headers(&asked(&decode).pop().unwrap()) == obeyed
        })
        .await;
    }
}

#[tokio::test]
async fn engine_that_was_started_anew_unseen_gets_the_request_again_in_the_body() {
    for stream in [false, true] {
        for at in ["prefill", "decode"] {
            let (one, other) = (on(), on());
            let prefill = obeying(&one, engine(&one, &other)).await;
            let decode = obeying(&other, engine(&other, &one)).await;
            let mut options = pair_options(&[&prefill], &[&decode]);
            options.retry_initial_backoff_ms = 1;
            options.disable_health_check = true;
            let gateway = start_with(options).await;
            let sent = value!({"text": "x", "stream": stream}).to_string();
            assert_eq!(post(&gateway, "/generate", &sent).await.status, 200);
            if at == "prefill" { &one } else { &other }.store(false, SeqCst);
            for _ in 0..2 {
                assert_eq!(post(&gateway, "/generate", &sent).await.status, 200, "{at}");
            }
            let restarted = if at == "prefill" { &prefill } else { &decode };
            let forms: Vec<_> = asked(restarted).iter().map(is_by_headers).collect();
            assert_eq!(forms, [true, true, false, false], "{at}");
            let shown = get(&gateway, "/workers").await.json()["workers"].clone();
            for worker in shown.as_array().unwrap() {
                assert_eq!(worker["circuit_breaker"], "closed");
            }
        }
    }
}

#[tokio::test]
async fn headers_option_uses_no_body_even_if_the_engine_ignores_headers() {
    let (prefill, off) = (obeying(&on(), |_| ok()).await, Arc::default());
    let decode = obeying(&off, engine(&off, &on())).await;
    let mut options = pair_options(&[&prefill], &[&decode]);
    (options.pd_metadata, options.retry_max_retries) = (PdMetadata::Headers, 2);
    options.retry_initial_backoff_ms = 1;
    let gateway = start_with(options).await;
    let reply = post(&gateway, "/generate", r#"{"text":"x"}"#).await;
    assert_eq!(
        (reply.status, reply.code()),
        (503, "pair_failed".to_owned())
    );
    assert!(
        reply
            .text()
            .contains("SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES")
    );
    assert!(asked(&decode).iter().all(is_by_headers));
    // A refusal that is the client's passes as it is.
    let picky = obeying(&on(), |_| json(400, r#"{"message":"too long"}"#)).await;
    let gateway = start_with(pair_options(&[&prefill], &[&picky])).await;
    let reply = post(&gateway, "/generate", r#"{"text":"x"}"#).await;
    assert_eq!(
        (reply.status, &*reply.text()),
        (400, r#"{"message":"too long"}"#)
    );
}

fn simulated(role: Role) -> SimWorker {
    let options = SimOptions {
        disaggregation_mode: role,
        disaggregation_bootstrap_port: 0,
        enable_request_header_overrides: true,
        record_requests: 100,
        ..SimOptions::default()
    };
    SimWorker::start(options).unwrap()
}

#[tokio::test]
async fn simulated_pair_answers_as_one_worker_does() {
    let (prefill, decode) = (simulated(Role::Prefill), simulated(Role::Decode));
    let alone = SimWorker::start(SimOptions::default()).unwrap();
    let url = |worker: &SimWorker| format!("http://{}", worker.addr());
    let gateway = start_with(Options {
        pd_disaggregation: true,
        prefill_urls: Some(vec![(url(&prefill), prefill.bootstrap_port())]),
        decode_urls: Some(vec![url(&decode)]),
        ..options(&[])
    })
    .await;
    gateway.has_ready(2).await;
    let texts = |reply: &Value| -> Vec<Value> {
        match reply {
            Value::Array(list) => list.iter().map(|it| it["text"].clone()).collect(),
            one => vec![
                one["text"].clone(),
                one["choices"][0]["message"]["content"].clone(),
            ],
        }
    };
    for (path, sent) in [
        ("/generate", value!({"text": "a b c"})),
        ("/generate", value!({"text": ["a b c", "d"]})),
        (
            "/v1/chat/completions",
            value!({"model": "sim-model", "messages": [{"role": "user", "content": "hi"}]}),
        ),
    ] {
        let sent = sent.to_string();
        let reply = post(&gateway, path, &sent).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let expected = post(alone.addr(), path, &sent).await.json();
        assert_eq!(texts(&reply.json()), texts(&expected), "{path} {sent}");
        for worker in [&prefill, &decode] {
            let recorded = worker.recorded();
            let got = recorded.iter().rfind(|it| it.path == path).unwrap();
            assert_eq!(got.body, sent.as_bytes(), "{path}");
        }
    }
}
