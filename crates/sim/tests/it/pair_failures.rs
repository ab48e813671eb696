//! Pairs of which one leg is missing, refused, aborted or dead.

use sim::{Role, SimOptions, SimWorker};
use testkit::{DEADLINE, Reply};
use tokio::time::{Instant, timeout};

use crate::pair::{Pair, Replies, fields, generate, options, waiting};
use crate::support::{chat, events, post, start};

/// A time-out for legs without a partner.
const SHORT: f64 = 0.5;

fn impatient() -> Pair {
    Pair::with(|options| {
        options.bootstrap_timeout_s = SHORT;
        options.waiting_timeout_s = SHORT;
        options.handshake_timeout_s = SHORT;
    })
}

fn assert_refused(reply: &Reply, status: u16, message: &str) {
    let json = reply.json();
    let text = json["message"]
        .as_str()
        .or(json["error"]["message"].as_str());
    assert_eq!(reply.status, status, "{}", reply.text());
    assert!(text.is_some_and(|text| text.contains(message)), "{json}");
}

/// The refusal in a stream that began with 200.
fn assert_refused_in_stream(reply: &Reply, code: u16, message: &str) {
    let events = events(reply);
    assert_eq!(reply.status, 200);
    assert_eq!(events[1..], ["[DONE]"]);
    let event: serde_json::Value = serde_json::from_str(&events[0]).unwrap();
    let reason = &event["meta_info"]["finish_reason"];
    let (error, abort) = (&event["error"], reason["type"] == "abort");
    let found = if abort {
        &reason["status_code"]
    } else {
        &error["code"]
    };
    assert_eq!(*found, code, "{event}");
    let text = if abort { reason } else { error }["message"].as_str();
    assert!(text.unwrap().contains(message), "{event}");
}

/// Three requests without a partner: plain, and streams of two routes.
async fn assert_times_out(pair: &Pair, worker: &SimWorker, begin: &str, why: &str) {
    let stream = |room| format!(r#""stream":true,{}"#, pair.fields(room));
    let (plain, native) = (
        generate("a", &pair.fields("7")),
        generate("a", &stream("8")),
    );
    let openai = chat("a", &format!(",{}", stream("9")));
    let started = Instant::now();
    let (plain, native, openai) = tokio::join!(
        post(worker, "/generate", &plain),
        post(worker, "/generate", &native),
        post(worker, "/v1/chat/completions", &openai)
    );
    assert!(started.elapsed().as_secs_f64() >= SHORT);
    assert_refused(&plain, 500, begin);
    assert_refused(&plain, 500, why);
    assert_eq!(plain.json()["object"], "error");
    assert_refused_in_stream(&native, 500, why);
    assert_refused_in_stream(&openai, 500, why);
    pair.assert_works().await;
}

#[tokio::test]
async fn a_prefill_leg_without_partner_times_out_in_every_shape() {
    let pair = impatient();
    let why = "timed out after 0.5s in KVPoll.Bootstrapping";
    assert_times_out(&pair, &pair.prefill, "Prefill bootstrap failed", why).await;
}

#[tokio::test]
async fn a_decode_leg_without_partner_times_out_in_every_shape() {
    let pair = impatient();
    let why = "timed out after 0.5s in KVPoll.WaitingForInput";
    assert_times_out(&pair, &pair.decode, "Decode transfer failed", why).await;
}

#[tokio::test]
async fn legs_in_different_rooms_do_not_meet() {
    let pair = impatient();
    let (one, other) = (
        generate("a", &pair.fields("7")),
        generate("a", &pair.fields("8")),
    );
    let (prefill, decode) = tokio::join!(
        post(&pair.prefill, "/generate", &one),
        post(&pair.decode, "/generate", &other)
    );
    assert_refused(&prefill, 500, "KVPoll.Bootstrapping");
    assert_refused(&decode, 500, "KVPoll.WaitingForInput");
    // Prefill needs no host, but a partner.
    let hostless = generate("a", r#""bootstrap_room":9"#);
    let alone = post(&pair.prefill, "/generate", &hostless).await;
    assert_refused(&alone, 500, "KVPoll.Bootstrapping");
}

#[tokio::test]
async fn a_request_without_port_goes_to_the_decode_workers_own() {
    let prefill = start(options(Role::Prefill));
    let decode = start(SimOptions {
        disaggregation_bootstrap_port: prefill.bootstrap_port().unwrap(),
        ..options(Role::Decode)
    });
    let pair = Pair { prefill, decode };
    let portless = r#""bootstrap_host":"127.0.0.1","bootstrap_port":null,"bootstrap_room":7"#;
    let replies = pair.both("/generate", &generate("a", portless)).await;
    assert_eq!((replies.prefill.status, replies.decode.status), (200, 200));
}

#[tokio::test]
async fn a_refused_decode_leg_leaves_prefill_waiting() {
    let prefill = start(SimOptions {
        bootstrap_timeout_s: SHORT,
        ..options(Role::Prefill)
    });
    let decode = start(SimOptions {
        context_length: Some(1),
        ..options(Role::Decode)
    });
    let pair = Pair { prefill, decode };
    let body = generate("12345678", &pair.fields("7"));
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    assert_refused(&decode, 400, "longer than the model's context length");
    assert_refused(&prefill, 500, "KVPoll.Bootstrapping");
}

#[tokio::test]
async fn the_head_of_a_waiting_chat_stream_comes_with_its_first_frame() {
    let pair = impatient();
    let stream = format!(r#","stream":true,{}"#, pair.fields("7"));
    let begin = Instant::now();
    let mut client = waiting(&pair.decode, "/v1/chat/completions", &chat("a", &stream)).await;
    client.head().await.unwrap();
    assert!(begin.elapsed().as_secs_f64() >= SHORT);
}

#[tokio::test]
async fn a_dead_bootstrap_server_fails_the_handshake() {
    let pair = impatient();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let dead = fields(port, "7");
    let unknown = r#""bootstrap_host":"no.such.invalid","bootstrap_port":1,"bootstrap_room":8"#;
    // Another server on the port is as good as none.
    let other = fields(pair.decode.addr().port(), "9");
    let fails = async |target: &str| {
        let begin = Instant::now();
        let reply = post(&pair.decode, "/generate", &generate("a", target)).await;
        assert_refused(&reply, 500, "Decode handshake failed");
        assert_refused(&reply, 500, "Aborted by AbortReq.");
        assert!(begin.elapsed().as_secs_f64() >= SHORT, "{target}");
    };
    tokio::join!(fails(&dead), fails(unknown), fails(&other));
}

#[tokio::test]
async fn a_killed_prefill_worker_is_noticed_late_and_can_come_back() {
    let Pair { prefill, decode } = Pair::with(|options| {
        options.lost_connection_s = SHORT;
        options.handshake_timeout_s = SHORT;
    });
    let port = prefill.bootstrap_port().unwrap();
    let body = generate("a", &fields(port, "7"));
    let mut client = waiting(&decode, "/generate", &body).await;
    let pair = Pair { prefill, decode };
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 1)
        .await;
    let Pair { prefill, decode } = pair;
    drop(prefill);
    let begin = Instant::now();
    let lost = client.reply().await;
    assert_refused(&lost, 500, "Decode transfer failed");
    assert_refused(&lost, 500, "Lost connection with prefill instance");
    assert!(begin.elapsed().as_secs_f64() >= SHORT * 0.9);
    let later = post(&decode, "/generate", &body).await;
    assert_refused(&later, 500, "Decode handshake failed");
    let prefill = start(SimOptions {
        disaggregation_bootstrap_port: port,
        ..options(Role::Prefill)
    });
    Pair { prefill, decode }.assert_works().await;
}

#[tokio::test]
async fn a_killed_decode_worker_is_not_an_abort() {
    let Pair { prefill, decode } = impatient();
    let body = generate("a", &fields(prefill.bootstrap_port().unwrap(), "7"));
    let pair = Pair { prefill, decode };
    let _client = waiting(&pair.decode, "/generate", &body).await;
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 1)
        .await;
    let Pair { prefill, decode } = pair;
    drop(decode);
    let reply = post(&prefill, "/generate", &body).await;
    assert_refused(&reply, 500, "KVPoll.Bootstrapping");
}

#[tokio::test]
async fn a_request_without_room_is_refused_by_both_roles() {
    let pair = Pair::start();
    let why = "received without bootstrap room id";
    for worker in [&pair.prefill, &pair.decode] {
        for path in ["/generate", "/v1/chat/completions", "/v1/score"] {
            let (plain, stream) = match path {
                "/generate" => (
                    r#"{"text":"a"}"#.to_owned(),
                    r#"{"text":"a","stream":true}"#.to_owned(),
                ),
                "/v1/score" => (
                    format!(r#"{{"query":"a","items":["b"],{}}}"#, pair.fields("7")),
                    String::new(),
                ),
                _ => (chat("a", ""), chat("a", r#","stream":true"#)),
            };
            assert_refused(&post(worker, path, &plain).await, 400, why);
            if !stream.is_empty() {
                assert_refused_in_stream(&post(worker, path, &stream).await, 400, why);
            }
        }
    }
}

#[tokio::test]
async fn a_refused_prefill_leg_leaves_decode_waiting_for_another_try() {
    let (long, short) = ("x".repeat(4 * 20), "x".repeat(4 * 5));
    let prefill = start(SimOptions {
        context_length: Some(10),
        ..options(Role::Prefill)
    });
    let decode = start(options(Role::Decode));
    let pair = Pair { prefill, decode };
    let of = |text: &str| generate(text, &pair.fields("7"));
    let mut client = waiting(&pair.decode, "/generate", &of(&long)).await;
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 1)
        .await;
    let refused = post(&pair.prefill, "/generate", &of(&long)).await;
    assert_refused(&refused, 400, "longer than the model's context length");
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 1)
        .await;
    assert_eq!(
        post(&pair.prefill, "/generate", &of(&short)).await.status,
        200
    );
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn a_prompt_too_long_for_both_is_refused_by_both() {
    let pair = Pair::with(|options| options.context_length = Some(2));
    let why = "The input (5 tokens) is longer than the model's context length (2 tokens).";
    let rest = pair.fields("7");
    let body = generate(&"x".repeat(20), &rest);
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    assert_refused(&prefill, 400, why);
    assert_refused(&decode, 400, why);
    let stream = format!(r#"{rest},"stream":true"#);
    let replies = pair
        .both("/v1/chat/completions", &chat("a", &format!(",{stream}")))
        .await;
    assert_eq!((replies.prefill.status, replies.decode.status), (400, 400));
    let replies = pair
        .both("/generate", &generate(&"x".repeat(20), &stream))
        .await;
    assert_refused_in_stream(&replies.decode, 400, why);
    assert!(replies.prefill.text().contains(r#""retryable":false"#));
}

#[tokio::test]
async fn a_live_request_id_is_not_taken_twice() {
    let pair = Pair::start();
    let body = generate("a", &format!(r#""rid":"r",{}"#, pair.fields("7")));
    let mut first = waiting(&pair.prefill, "/generate", &body).await;
    pair.until_queued(&pair.prefill, "prefill_bootstrap_queue_reqs", 1)
        .await;
    let second = post(&pair.prefill, "/generate", &body).await;
    assert_refused(&second, 400, "Duplicate request ID detected");
    assert_eq!(post(&pair.decode, "/generate", &body).await.status, 200);
    assert_eq!(first.reply().await.status, 200);
    pair.assert_works().await;
}

/// A reply that does not come in twice the time-out.
async fn hangs(client: &mut testkit::Client) -> bool {
    let long = std::time::Duration::from_secs_f64(SHORT * 2.0);
    timeout(long, client.head()).await.is_err()
}

#[tokio::test]
async fn room_zero_hangs_decode_and_a_negative_room_is_corrupt() {
    let pair = impatient();
    let zero = generate("a", &pair.fields("0"));
    let mut decode = waiting(&pair.decode, "/generate", &zero).await;
    assert_eq!(post(&pair.prefill, "/generate", &zero).await.status, 200);
    assert!(hangs(&mut decode).await);
    let negative = generate("a", &pair.fields("-7"));
    let Replies { prefill, decode } = pair.both("/generate", &negative).await;
    assert_eq!(prefill.status, 200);
    assert_refused(
        &decode,
        500,
        "Metadata corruption detected - bootstrap_room mismatch",
    );
}

#[tokio::test]
async fn several_samples_hang_decode() {
    let pair = impatient();
    let mut clients = Vec::new();
    let rest = |room| pair.fields(room);
    let bodies = [
        (
            "/v1/chat/completions",
            chat("a", &format!(r#","n":2,{}"#, rest("7"))),
        ),
        (
            "/generate",
            format!(
                r#"{{"text":"a","sampling_params":{{"n":2}},{}}}"#,
                rest("8")
            ),
        ),
    ];
    for (path, body) in bodies {
        clients.push(waiting(&pair.decode, path, &body).await);
        assert_eq!(post(&pair.prefill, path, &body).await.status, 200);
    }
    let [chat, native] = &mut clients[..] else {
        unreachable!("two requests")
    };
    assert_eq!(tokio::join!(hangs(chat), hangs(native)), (true, true));
}

#[tokio::test]
async fn a_room_twice_in_a_list_hangs_decode() {
    let pair = impatient();
    let body = format!(r#"{{"text":["a","b"],{}}}"#, pair.fields("[7,7]"));
    let mut decode = waiting(&pair.decode, "/generate", &body).await;
    assert_eq!(post(&pair.prefill, "/generate", &body).await.status, 200);
    assert!(hangs(&mut decode).await);
}

#[tokio::test]
async fn a_room_in_two_live_pairs_gives_one_the_text_of_the_other() {
    let pair = Pair::with(|options| {
        options.waiting_timeout_s = SHORT * 2.0;
        // Long enough for the second pair to come.
        options.kv_transfer_ms_per_1k_tokens = 500_000.0;
    });
    let one = generate("one", &pair.fields("7"));
    let two = generate("two", &pair.fields("7"));
    let mut prefill_one = waiting(&pair.prefill, "/generate", &one).await;
    let mut decode_one = waiting(&pair.decode, "/generate", &one).await;
    pair.until_queued(&pair.prefill, "prefill_inflight_queue_reqs", 1)
        .await;
    let Replies { prefill, decode } = pair.both("/generate", &two).await;
    assert_eq!(prefill.status, 200);
    assert_eq!(prefill_one.reply().await.status, 200);
    let plain = post(&crate::support::started(), "/generate", &one)
        .await
        .json();
    assert_eq!(decode.json()["text"], plain["text"]);
    assert!(hangs(&mut decode_one).await);
}

#[tokio::test]
async fn fields_that_kill_sglang_stop_the_worker() {
    let list = r#""bootstrap_host":["127.0.0.1"],"bootstrap_port":[1],"bootstrap_room":[7]"#;
    let hostless = r#""bootstrap_room":7"#;
    let large =
        r#""bootstrap_host":"127.0.0.1","bootstrap_port":1,"bootstrap_room":9223372036854775808"#;
    for (role, rest) in [
        (Role::Prefill, list),
        (Role::Decode, list),
        (Role::Decode, hostless),
        (Role::Prefill, large),
    ] {
        let worker = start(options(role));
        let mut idle = waiting(&worker, "/v1/models", "").await;
        let mut client = waiting(&worker, "/generate", &generate("a", rest)).await;
        assert!(client.try_reply().await.is_none(), "{role:?} {rest}");
        assert!(worker.wait(DEADLINE), "{role:?} {rest}");
        assert!(worker.crash_reason().is_some());
        while !idle.closed().await {}
        assert!(std::net::TcpStream::connect(worker.addr()).is_err());
        let lenient = start(SimOptions {
            crash_on_bad_bootstrap: false,
            ..options(role)
        });
        let reply = post(&lenient, "/generate", &generate("a", rest)).await;
        assert_refused(&reply, 400, "bootstrap");
        assert_eq!(lenient.crash_reason(), None);
    }
}

#[tokio::test]
async fn a_room_too_large_kills_prefill_and_decode_loses_it() {
    let pair = Pair::with(|options| {
        options.lost_connection_s = 0.0;
        options.enable_request_header_overrides = true;
    });
    let body = generate("a", &pair.fields("9223372036854775808"));
    let mut decode = waiting(&pair.decode, "/generate", &body).await;
    pair.until_queued(&pair.decode, "decode_transfer_queue_reqs", 1)
        .await;
    // A header kills as the body does.
    let line = "x-override-bootstrap-room: 9223372036854775808\r\n";
    let killer = testkit::posting("/generate", line, &generate("a", &pair.fields("7")));
    let mut prefill = testkit::Client::to(pair.prefill.addr()).await;
    prefill.send(&killer).await;
    assert!(prefill.try_reply().await.is_none());
    assert!(pair.prefill.crash_reason().is_some());
    let lost = decode.reply().await;
    assert_refused(&lost, 500, "Lost connection with prefill instance");
}
