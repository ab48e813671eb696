//! Several answers to a prompt: pairs give one, so they are asked so many times.

use std::collections::BTreeSet;

use gateway::Options;
use serde_json::{Value, json};

use super::stage::{aborted, asked, body, doing, engine, pair_options, stream};
use crate::support::{
    Client, Received, Running, Step, Worker, json as answering, ok, options, post, posting,
    start_with, until,
};

const CHAT: &str = "/v1/chat/completions";

/// Which of the samples a request is for, by the end of its id.
fn sample(request: &Received) -> u64 {
    let rid = body(request)["rid"].as_str().unwrap().to_owned();
    rid.rsplit('_').next().unwrap().parse().unwrap()
}

fn chat(request: &Received) -> Vec<Step> {
    let sample = sample(request);
    let answer = json!({
        "id": format!("of {sample}"),
        "choices": [{"index": 0, "message": {"content": format!("answer {sample}")}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 10 + sample, "total_tokens": 17 + sample},
    });
    answering(200, &answer.to_string())
}

fn chunks(request: &Received) -> Vec<Step> {
    let sample = sample(request);
    let id = format!("of {sample}");
    let piece =
        |text: &str| json!({"id": id, "choices": [{"index": 0, "delta": {"content": text}}]});
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9});
    stream(&[
        piece("a"),
        piece(&format!("b{sample}")),
        json!({"id": id, "choices": [], "usage": usage}),
    ])
}

/// A gateway in front of a pair whose decode worker answers so.
async fn stage(
    script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    change: impl Fn(&mut Options),
) -> (Worker, Worker, Running) {
    let (prefill, decode) = (doing(ok()).await, engine(script).await);
    let mut options = pair_options(&[&prefill], &[&decode]);
    change(&mut options);
    let gateway = start_with(options).await;
    (prefill, decode, gateway)
}

async fn nothing_is_left(gateway: &Running) {
    until(|| async { gateway.in_flight().await == 0 }).await;
}

/// The events of a joined stream, its workers going on as they wait.
async fn events(gateway: &Running, decode: &Worker, path: &str, sent: &Value) -> Vec<String> {
    let text = sent.to_string();
    let asking = post(gateway, path, &text);
    let going_on = until(|| async {
        decode.go_on();
        gateway.in_flight().await == 0 && !asked(decode).is_empty()
    });
    let (reply, ()) = tokio::join!(asking, going_on);
    assert_eq!((reply.status, reply.whole), (200, true));
    let text = reply.text();
    let events = text.strip_suffix("\n\n").unwrap().split("\n\n");
    events
        .map(|it| it.strip_prefix("data: ").unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn answers_to_each_prompt_are_asked_for_one_by_one_and_joined() {
    let (prefill, decode, gateway) = stage(chat, |_| ()).await;
    let sent = json!({"messages": [], "rid": "mine", "n": 3});
    let reply = post(&gateway, CHAT, &sent.to_string()).await;
    assert_eq!((reply.status, reply.whole), (200, true));
    let joined = reply.json();
    let choices = joined["choices"].as_array().unwrap();
    for (at, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], at);
        assert_eq!(choice["message"]["content"], format!("answer {at}"));
    }
    assert_eq!((choices.len(), joined["id"].as_str()), (3, Some("of 0")));
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 33, "total_tokens": 40});
    assert_eq!(joined["usage"], usage);
    for worker in [&prefill, &decode] {
        let bodies: Vec<Value> = asked(worker).iter().map(body).collect();
        assert!(bodies.iter().all(|body| body["n"] == 1));
        let rooms: BTreeSet<_> = bodies
            .iter()
            .map(|it| it["bootstrap_room"].as_i64())
            .collect();
        let rids: BTreeSet<_> = bodies.iter().map(|body| body["rid"].as_str()).collect();
        assert_eq!(
            rids,
            BTreeSet::from([Some("mine_000"), Some("mine_001"), Some("mine_002")])
        );
        assert_eq!(rooms.len(), 3);
    }
    nothing_is_left(&gateway).await;
}

#[tokio::test]
async fn answers_to_a_list_of_generate_stand_prompt_by_prompt() {
    let script = |request: &Received| {
        let sample = body(request)["rid"][0].as_str().unwrap().to_owned();
        let answers = ["x", "y"].map(|prompt| json!({"text": format!("{prompt} {sample}")}));
        answering(200, &json!(answers).to_string())
    };
    let (_prefill, _decode, gateway) = stage(script, |_| ()).await;
    let sent = json!({"text": ["x", "y"], "rid": ["a", "b"], "sampling_params": {"n": 2}});
    let joined = post(&gateway, "/generate", &sent.to_string()).await.json();
    let texts: Vec<_> = joined
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["text"].clone())
        .collect();
    assert_eq!(texts, ["x a_000", "x a_001", "y a_000", "y a_001"]);
}

#[tokio::test]
async fn streams_are_joined_under_one_id_with_one_count_of_tokens_and_one_end() {
    for keep_alive in [0, 60] {
        let (_prefill, decode, gateway) =
            stage(chunks, |options| options.sse_keepalive_secs = keep_alive).await;
        let sent = json!({"messages": [], "rid": "mine", "n": 2, "stream": true});
        let mut events = events(&gateway, &decode, CHAT, &sent).await;
        assert_eq!(events.pop().unwrap(), "[DONE]");
        let events: Vec<Value> = events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        let (usage, pieces) = events.split_last().unwrap();
        let tokens = json!({"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11});
        assert_eq!((&usage["usage"], &usage["choices"]), (&tokens, &json!([])));
        let ids: BTreeSet<_> = events.iter().map(|event| event["id"].as_str()).collect();
        assert_eq!(ids.len(), 1);
        for (at, texts) in [(0, ["a", "b0"]), (1, ["a", "b1"])] {
            let choices = pieces.iter().map(|piece| &piece["choices"][0]);
            let own = choices.filter(|choice| choice["index"] == at);
            let own: Vec<_> = own
                .map(|choice| choice["delta"]["content"].as_str())
                .collect();
            assert_eq!(own, texts.map(Some), "{events:?}");
        }
    }
}

#[tokio::test]
async fn events_of_generate_say_which_answer_they_are_of() {
    let script = |request: &Received| stream(&[json!({"text": format!("t{}", sample(request))})]);
    let (_prefill, decode, gateway) = stage(script, |_| ()).await;
    let sent = json!({"text": "x", "rid": "a", "stream": true, "sampling_params": {"n": 2}});
    let mut events = events(&gateway, &decode, "/generate", &sent).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    events.sort();
    assert_eq!(
        events,
        [r#"{"text":"t0","index":0}"#, r#"{"text":"t1","index":1}"#]
    );
}

#[tokio::test]
async fn refusal_of_one_answer_is_the_reply_and_ends_the_others() {
    let script = |request: &Received| match sample(request) {
        1 => answering(422, r#"{"message":"no"}"#),
        _ => vec![Step::Hang],
    };
    let (prefill, decode) = (doing(vec![Step::Hang]).await, engine(script).await);
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let sent = json!({"messages": [], "rid": "mine", "n": 3});
    let reply = post(&gateway, CHAT, &sent.to_string()).await;
    assert_eq!(
        (reply.status, reply.json()),
        (422, json!({"message": "no"}))
    );
    // Those that had been sent are ended at both workers.
    until(|| async {
        let hanging = asked(&decode).iter().filter(|it| sample(it) != 1).count();
        aborted(&decode).len() == hanging && aborted(&prefill).len() == asked(&prefill).len()
    })
    .await;
    nothing_is_left(&gateway).await;
}

#[tokio::test]
async fn stream_that_breaks_off_ends_the_joined_one_with_an_error_and_no_last_word() {
    let script = |request: &Received| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let piece = "data: {\"id\":\"x\",\"choices\":[{\"index\":0}]}\n\n";
        let piece = format!("{head}{:x}\r\n{piece}\r\n", piece.len());
        let mut steps = vec![Step::Send(piece.into_bytes())];
        steps.push(if sample(request) == 0 {
            Step::Wait
        } else {
            Step::Hang
        });
        steps.push(Step::Close);
        steps
    };
    let (_prefill, decode, gateway) = stage(script, |_| ()).await;
    let sent = json!({"messages": [], "rid": "mine", "n": 2, "stream": true}).to_string();
    let asking = post(&gateway, CHAT, &sent);
    let going_on = until(|| async {
        decode.go_on();
        gateway.in_flight().await == 0 && asked(&decode).len() == 2
    });
    let (reply, ()) = tokio::join!(asking, going_on);
    let text = reply.text();
    assert_eq!(reply.status, 200);
    assert!(!reply.whole, "it ends as a broken reply: {text}");
    assert_eq!(text.matches("\"error\"").count(), 1, "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    until(|| async { aborted(&decode).contains(&"mine_001".to_owned()) }).await;
}

#[tokio::test]
async fn client_that_leaves_ends_all_of_them() {
    let (_prefill, decode, gateway) = stage(|_| vec![Step::Hang], |_| ()).await;
    let sent = json!({"messages": [], "rid": "mine", "n": 3}).to_string();
    let mut client = Client::to(&gateway).await;
    client.send(&posting(CHAT, "", &sent)).await;
    until(|| async { asked(&decode).len() == 3 }).await;
    drop(client);
    until(|| async { aborted(&decode).len() == 3 }).await;
    nothing_is_left(&gateway).await;
}

#[tokio::test]
async fn counts_beyond_the_limit_or_that_differ_are_refused_before_any_worker_is_asked() {
    let (prefill, decode, gateway) = stage(|_| ok(), |_| ()).await;
    let differ = json!([{"n": 2}, {"n": 3}]);
    for (path, sent) in [
        (CHAT, json!({"messages": [], "n": 129})),
        (CHAT, json!({"messages": [], "n": 2.5})),
        (
            "/generate",
            json!({"text": ["a", "b"], "sampling_params": differ}),
        ),
    ] {
        let reply = post(&gateway, path, &sent.to_string()).await;
        assert_eq!(
            (reply.status, reply.code()),
            (400, "unsupported_n".to_owned())
        );
        assert!(reply.text().contains("from 1 to 128"), "{}", reply.text());
    }
    assert!(asked(&prefill).is_empty() && asked(&decode).is_empty());
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn bodies_are_made_only_where_there_is_room_for_them() {
    let limit = |options: &mut Options| options.max_buffered_bytes = Some(1 << 20);
    let (_prefill, decode, gateway) = stage(|_| ok(), limit).await;
    let text = "x".repeat(200_000);
    let named = json!({"messages": [{"content": text}], "rid": "mine", "n": 8}).to_string();
    let reply = post(&gateway, CHAT, &named).await;
    assert_eq!(reply.status, 503, "each body differs: {}", reply.text());
    assert!(asked(&decode).len() < 8);
    nothing_is_left(&gateway).await;
    // Without an id all are the same, which is held twice.
    let sent = json!({"messages": [{"content": text}], "n": 8}).to_string();
    post(&gateway, CHAT, &sent).await;
    until(|| async { asked(&decode).len() >= 8 }).await;
    nothing_is_left(&gateway).await;
}

#[tokio::test]
async fn answers_in_another_form_are_an_error() {
    let (_prefill, _decode, gateway) = stage(|_| answering(200, "[7"), |_| ()).await;
    let sent = json!({"messages": [], "n": 2}).to_string();
    let reply = post(&gateway, CHAT, &sent).await;
    assert_eq!(
        (reply.status, reply.code()),
        (502, "samples_not_joined".to_owned())
    );
}

#[tokio::test]
async fn regular_worker_beside_pairs_gets_the_request_as_it_is() {
    let regular = doing(ok()).await;
    let (prefill, decode) = (doing(ok()).await, doing(ok()).await);
    let gateway = start_with(Options {
        worker_urls: options(&[&regular]).worker_urls,
        ..pair_options(&[&prefill], &[&decode])
    })
    .await;
    gateway.has_ready(3).await;
    let sent = r#"{"messages":[],"n":2}"#;
    for _ in 0..10 {
        assert_eq!(post(&gateway, CHAT, sent).await.status, 200);
    }
    let bodies: Vec<_> = asked(&regular).into_iter().map(|it| it.body).collect();
    assert_eq!(bodies, vec![sent.as_bytes(); 10]);
    assert!(asked(&prefill).is_empty() && asked(&decode).is_empty());
}
