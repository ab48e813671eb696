//! Pairs that work: every form of a request, and whose answer has what.

use serde_json::{Value, json};
use sim::{Role, SimOptions};
use testkit::{Reply, posting};

use crate::pair::{Pair, Replies, fields, generate, options, waiting};
use crate::support::{chat, events, get, post, start, started};

/// What a worker without a role answers.
async fn alone(path: &str, body: &str) -> Reply {
    post(&started(), path, body).await
}

fn last_event(reply: &Reply) -> Value {
    let events = events(reply);
    let last = events.iter().rev().find(|event| *event != "[DONE]");
    serde_json::from_str(last.expect("an event")).expect("JSON")
}

#[tokio::test]
async fn a_pair_answers_as_one_worker_does() {
    let pair = Pair::start();
    let body = generate("once upon a time", &pair.fields("7"));
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    let whole = alone("/generate", &body).await.json();
    let (prefill, decode) = (prefill.json(), decode.json());
    assert_eq!(decode["text"], whole["text"]);
    assert_eq!(decode["output_ids"], whole["output_ids"]);
    assert_eq!(decode["meta_info"]["completion_tokens"], 4);
    assert_eq!(prefill["output_ids"], json!([whole["output_ids"][0]]));
    let meta = &prefill["meta_info"];
    assert_eq!(meta["completion_tokens"], 1);
    assert_eq!(
        meta["finish_reason"],
        json!({"type": "length", "length": 1})
    );
}

#[tokio::test]
async fn openai_and_anthropic_routes_pair_as_well() {
    let pair = Pair::start();
    let rest = |room| format!(r#","max_tokens":3,{}"#, pair.fields(room));
    let completion = r#"{"model":"m","prompt":"hi""#;
    let bodies = [
        ("/v1/chat/completions", chat("hi", &rest("7"))),
        ("/v1/completions", format!("{completion}{}}}", rest("8"))),
        ("/v1/messages", chat("hi", &rest("9"))),
    ];
    for (path, body) in bodies {
        let Replies { prefill, decode } = pair.both(path, &body).await;
        assert_eq!((prefill.status, decode.status), (200, 200), "{path}");
        let whole = alone(path, &body).await.json();
        let decode = decode.json();
        for key in ["choices", "content", "usage"] {
            assert_eq!(decode[key], whole[key], "{path} {key}");
        }
    }
}

#[tokio::test]
async fn streams_begin_after_the_transfer_and_are_whole() {
    let pair = Pair::start();
    let rest = format!(r#","max_tokens":3,"stream":true,{}"#, pair.fields("7"));
    let body = chat("hi", &rest);
    let Replies { prefill, decode } = pair.both("/v1/chat/completions", &body).await;
    let whole = alone("/v1/chat/completions", &body).await;
    assert_eq!(events(&decode).len(), events(&whole).len());
    assert_eq!(events(&prefill).len(), 4); // role, token, finish, [DONE]
    let body = generate("hi", &format!(r#""stream":true,{}"#, pair.fields("8")));
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    assert_eq!(events(&prefill).len(), 2);
    let whole = alone("/generate", &body).await;
    assert_eq!(last_event(&decode)["text"], last_event(&whole)["text"]);
}

#[tokio::test]
async fn prefill_ignores_stop_strings_and_maximum() {
    let pair = Pair::start();
    for (room, sampling) in [("7", r#"{"max_new_tokens":0}"#), ("8", r#"{"stop":"e"}"#)] {
        let rest = pair.fields(room);
        let body = format!(r#"{{"text":"a","sampling_params":{sampling},{rest}}}"#);
        let Replies { prefill, .. } = pair.both("/generate", &body).await;
        let meta = &prefill.json()["meta_info"];
        assert_eq!(meta["completion_tokens"], 1, "{sampling}");
        assert_eq!(meta["finish_reason"]["type"], "length", "{sampling}");
    }
}

#[tokio::test]
async fn the_first_frame_waits_for_the_partner_and_the_transfer() {
    let pair = Pair::with(|options| options.kv_transfer_ms_per_1k_tokens = 200_000.0);
    // Two tokens take 400 ms.
    let body = generate(
        "12345678",
        &format!(r#""stream":true,{}"#, pair.fields("7")),
    );
    let begin = tokio::time::Instant::now();
    let mut decode = waiting(&pair.decode, "/generate", &body).await;
    assert_eq!(decode.head().await.unwrap().unwrap().status, 200);
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 1)
        .await;
    let mut prefill = waiting(&pair.prefill, "/generate", &body).await;
    pair.until_queued(&pair.prefill, "prefill_inflight_queue_reqs", 1)
        .await;
    assert_eq!(prefill.reply().await.status, 200);
    assert!(!decode.chunk().await.unwrap().unwrap().is_empty());
    assert!(begin.elapsed().as_millis() >= 400);
}

#[tokio::test]
async fn decode_reports_the_cached_tokens_of_prefill() {
    let pair = Pair::start();
    let text = "x".repeat(4 * 16 * 3);
    for (room, cached) in [("7", 0), ("8", 32)] {
        let body = generate(&text, &pair.fields(room));
        let Replies { prefill, decode } = pair.both("/generate", &body).await;
        assert_eq!(prefill.json()["meta_info"]["cached_tokens"], cached);
        assert_eq!(decode.json()["meta_info"]["cached_tokens"], cached);
    }
}

#[tokio::test]
async fn prompt_log_probabilities_leave_the_cache_unused() {
    let worker = started();
    let text = "x".repeat(4 * 16 * 3);
    let starts = [
        (None, 0),
        (None, 32),
        (Some(0), 0),
        (Some(20), 16),
        (Some(-1), 32),
    ];
    for (from, cached) in starts {
        let rest = match from {
            Some(from) => format!(r#""return_logprob":true,"logprob_start_len":{from}"#),
            None => r#""stream":false"#.to_owned(),
        };
        let reply = post(&worker, "/generate", &generate(&text, &rest)).await;
        assert_eq!(reply.json()["meta_info"]["cached_tokens"], cached, "{rest}");
    }
    let echo = format!(r#"{{"prompt":"{text}","echo":true,"logprobs":1}}"#);
    let usage = post(&worker, "/v1/completions", &echo).await.json()["usage"].clone();
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn prompt_log_probabilities_are_prefills_only() {
    let pair = Pair::start();
    let rest = r#""return_logprob":true,"logprob_start_len":0,"#;
    let body = generate("12345678", &format!("{rest}{}", pair.fields("7")));
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    let whole = alone("/generate", &body).await.json();
    let (prefill, decode) = (prefill.json(), decode.json());
    let input = "input_token_logprobs";
    assert_eq!(prefill["meta_info"][input], whole["meta_info"][input]);
    assert_eq!(whole["meta_info"][input].as_array().unwrap().len(), 2);
    assert_eq!(decode["meta_info"][input], json!([]));
    let output = "output_token_logprobs";
    assert_eq!(decode["meta_info"][output], whole["meta_info"][output]);
}

#[tokio::test]
async fn log_probabilities_of_chosen_tokens_lack_the_first_on_decode() {
    let pair = Pair::start();
    let rest = r#""return_logprob":true,"logprob_start_len":0,"top_logprobs_num":2,"token_ids_logprob":[5,6],"#;
    let body = generate("12345678", &format!("{rest}{}", pair.fields("7")));
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    let whole = alone("/generate", &body).await.json()["meta_info"].clone();
    let prefill = &prefill.json()["meta_info"];
    let decode = &decode.json()["meta_info"];
    for key in ["input_top_logprobs", "input_token_ids_logprobs"] {
        assert_eq!(prefill[key], whole[key], "{key}");
        assert_eq!((&decode[key], &whole[key][0]), (&json!([]), &Value::Null));
        assert_eq!(whole[key][1].as_array().unwrap().len(), 2, "{key}");
    }
    assert_eq!(decode["output_top_logprobs"], whole["output_top_logprobs"]);
    let chosen = "output_token_ids_logprobs";
    assert_eq!(prefill[chosen][0], whole[chosen][0]);
    assert_eq!(decode[chosen][0], Value::Null);
    assert_eq!(decode[chosen][1], whole[chosen][1]);
}

#[tokio::test]
async fn an_echoed_prompt_has_log_probabilities_on_prefill_only() {
    let pair = Pair::start();
    let rest = pair.fields("7");
    let body = format!(
        r#"{{"model":"m","prompt":"12345678","max_tokens":3,"echo":true,"logprobs":1,{rest}}}"#
    );
    let Replies { prefill, decode } = pair.both("/v1/completions", &body).await;
    let whole = alone("/v1/completions", &body).await.json();
    let of = |json: &Value, key: &str| json["choices"][0]["logprobs"][key].clone();
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let (prefill, decode) = (of(&prefill.json(), key), of(&decode.json(), key));
        let mut merged = prefill.as_array().unwrap()[..2].to_vec();
        merged.extend(decode.as_array().unwrap().clone());
        assert_eq!(Value::from(merged), of(&whole, key), "{key}");
        assert_eq!(prefill.as_array().unwrap().len(), 3, "{key}");
    }
    let text = |json: Value| json["choices"][0]["text"].clone();
    assert_eq!(text(decode.json()), text(whole));
}

#[tokio::test]
async fn lists_take_one_room_or_one_for_each() {
    let pair = Pair::start();
    let port = pair.prefill.bootstrap_port().unwrap();
    let host = r#""bootstrap_host":["127.0.0.1","127.0.0.1","unused"]"#;
    let forms = [
        fields(port, "7"),
        fields(port, "[17,27]"),
        format!(r#"{host},"bootstrap_port":[{port},{port}],"bootstrap_room":[37,47]"#),
    ];
    for form in forms {
        let body = format!(r#"{{"text":["one","two"],{form}}}"#);
        let Replies { prefill, decode } = pair.both("/generate", &body).await;
        let whole = alone("/generate", &body).await.json();
        assert_eq!(prefill.json().as_array().unwrap().len(), 2, "{form}");
        let decode = decode.json();
        for at in 0..2 {
            assert_eq!(decode[at]["text"], whole[at]["text"], "{form}");
        }
    }
    let one = format!(r#"{{"text":["one"],{}}}"#, fields(port, "[7]"));
    let Replies { prefill, decode } = pair.both("/generate", &one).await;
    assert_eq!((prefill.status, decode.status), (200, 200));
}

#[tokio::test]
async fn consecutive_rooms_of_a_list_are_separate_pairs() {
    let pair = Pair::start();
    let list = format!(r#"{{"text":["one","two"],{}}}"#, pair.fields("7"));
    let second = generate("two", &pair.fields("8"));
    let mut list = waiting(&pair.decode, "/generate", &list).await;
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 2)
        .await;
    assert_eq!(post(&pair.prefill, "/generate", &second).await.status, 200);
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 1)
        .await;
    let first = generate("one", &pair.fields("7"));
    assert_eq!(post(&pair.prefill, "/generate", &first).await.status, 200);
    assert_eq!(list.reply().await.json().as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn too_few_rooms_are_an_index_error() {
    let pair = Pair::start();
    let body = format!(r#"{{"text":["a","b"],{}}}"#, pair.fields("[7]"));
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    assert_eq!((prefill.status, decode.status), (500, 500));
    pair.assert_works().await;
}

#[tokio::test]
async fn the_fake_host_needs_no_partner() {
    let pair = Pair::start();
    let fake = r#""bootstrap_host":"2.2.2.2","bootstrap_port":1,"bootstrap_room":7"#;
    let body = generate("a", fake);
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    let whole = alone("/generate", &body).await.json();
    let (prefill, decode) = (prefill.json(), decode.json());
    assert_eq!(prefill["output_ids"][0], whole["output_ids"][0]);
    assert_ne!(decode["text"], whole["text"]);
}

#[tokio::test]
async fn a_worker_without_a_role_ignores_bootstrap_fields() {
    let worker = started();
    let body = generate("a", &fields(1, "[7]"));
    assert_eq!(post(&worker, "/generate", &body).await.status, 200);
    assert_eq!(worker.bootstrap_port(), None);
}

#[tokio::test]
async fn a_room_serves_again_after_its_pair_ended() {
    let pair = Pair::start();
    for text in ["one", "two"] {
        let body = generate(text, &pair.fields("7"));
        let Replies { decode, .. } = pair.both("/generate", &body).await;
        let whole = alone("/generate", &body).await.json();
        assert_eq!(decode.json()["text"], whole["text"]);
    }
}

#[tokio::test]
async fn header_overrides_take_the_place_of_fields() {
    let pair = Pair::with(|options| options.enable_request_header_overrides = true);
    let port = pair.prefill.bootstrap_port().unwrap();
    let lines = |room: &str| {
        format!(
            "x-override-bootstrap-host: 127.0.0.1\r\nx-override-bootstrap-port: {port}\r\n\
             x-override-bootstrap-room: {room}\r\nx-override-rid: mine\r\n"
        )
    };
    // The lists would kill both workers.
    let killer = generate("a", r#""bootstrap_host":["h"],"bootstrap_room":[1]"#);
    let bodies = [
        ("/generate", killer.as_str(), "7"),
        ("/v1/chat/completions", &chat("a", ""), "8"),
    ];
    for (path, body, room) in bodies {
        let bytes = posting(path, &lines(room), body);
        let (prefill, decode) = tokio::join!(
            testkit::raw(pair.prefill.addr(), &bytes),
            testkit::raw(pair.decode.addr(), &bytes)
        );
        assert_eq!((prefill.status, decode.status), (200, 200), "{path}");
        let decode = decode.json();
        let id = decode["meta_info"]["id"].as_str().or(decode["id"].as_str());
        assert_eq!(id, Some("mine"), "{path}");
    }
    let message = posting(
        "/v1/messages",
        &lines("10"),
        &chat("a", r#","max_tokens":3"#),
    );
    let (prefill, decode) = tokio::join!(
        testkit::raw(pair.prefill.addr(), &message),
        testkit::raw(pair.decode.addr(), &message)
    );
    assert_eq!((prefill.status, decode.status), (200, 200));
    let completion = posting(
        "/v1/completions",
        &lines("9"),
        r#"{"model":"m","prompt":"a"}"#,
    );
    let refused = testkit::raw(pair.decode.addr(), &completion).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("without bootstrap room id"));
}

#[tokio::test]
async fn a_request_id_in_the_headers_is_numbered_for_lists() {
    let pair = Pair::with(|options| options.enable_request_header_overrides = true);
    let body = format!(r#"{{"text":["a","b"],{}}}"#, pair.fields("7"));
    let bytes = posting("/generate", "x-override-rid: mine\r\n", &body);
    let mut client = testkit::Client::to(pair.decode.addr()).await;
    client.send(&bytes).await;
    for (rid, left) in [("mine", 2), ("mine_1", 0)] {
        let queue = "decode_transfer_queue_reqs";
        pair.until_queued(&pair.decode, queue, 2).await;
        let abort = format!(r#"{{"rid":"{rid}"}}"#);
        post(&pair.decode, "/abort_request", &abort).await;
        pair.until_queued(&pair.decode, queue, left).await;
    }
    assert_eq!(client.reply().await.status, 500);
}

#[tokio::test]
async fn a_paused_prefill_worker_holds_its_legs_unseen() {
    let pair = Pair::start();
    let pause = r#"{"mode":"in_place"}"#;
    post(&pair.prefill, "/pause_generation", pause).await;
    let body = generate("a", &pair.fields("7"));
    let mut prefill = waiting(&pair.prefill, "/generate", &body).await;
    let mut decode = waiting(&pair.decode, "/generate", &body).await;
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 1)
        .await;
    pair.until_queued(&pair.prefill, "prefill_bootstrap_queue_reqs", 0)
        .await;
    post(&pair.prefill, "/continue_generation", "{}").await;
    assert_eq!(prefill.reply().await.status, 200);
    assert_eq!(decode.reply().await.status, 200);
}

#[tokio::test]
async fn an_empty_request_finds_out_whether_headers_are_obeyed() {
    let probe = posting("/generate", "x-override-bootstrap-room: ?\r\n", "{}");
    for role in [Role::Null, Role::Prefill, Role::Decode] {
        for enabled in [true, false] {
            let worker = start(SimOptions {
                enable_request_header_overrides: enabled,
                ..options(role)
            });
            let reply = testkit::raw(worker.addr(), &probe).await;
            let named = "invalid x-override-bootstrap-room header '?'";
            assert_eq!(reply.status, 400);
            assert_eq!(reply.text().contains(named), enabled, "{}", reply.text());
            let missing = "Either text, input_ids or input_embeds should be provided.";
            assert_eq!(reply.text().contains(missing), !enabled);
        }
    }
}

#[tokio::test]
async fn the_bootstrap_server_answers_health() {
    let pair = Pair::start();
    let port = pair.prefill.bootstrap_port().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(testkit::get(address, "/health").await.status, 200);
    assert_eq!(testkit::get(address, "/other").await.status, 404);
    let info = get(&pair.prefill, "/server_info").await.json();
    assert_eq!(info["disaggregation_bootstrap_port"], port);
}

#[tokio::test]
async fn a_list_of_one_prompt_has_a_counted_request_id() {
    let (pair, alone) = (Pair::start(), started());
    for (text, id) in [(r#""a""#, "mine"), (r#"["a"]"#, "mine_0")] {
        let fields = pair.fields("7");
        let body = format!(r#"{{"text":{text},"rid":"mine",{fields}}}"#);
        let both = pair.both("/generate", &body).await;
        let replies = [
            both.prefill,
            both.decode,
            post(&alone, "/generate", &body).await,
        ];
        for reply in replies.map(|reply| reply.json()) {
            let first = reply.get(0).unwrap_or(&reply);
            assert_eq!(first["meta_info"]["id"], id, "{reply}");
        }
    }
}
