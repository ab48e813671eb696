//! When one leg of a pair fails: what the client gets, and what becomes of the other leg.

use std::time::Duration;

use gateway::Options;
use tokio::time::{Instant, timeout};

use super::stage::{aborted, asked, doing, engine, has_seen_the_end, open_circuits, pair_options};
use crate::support::{Client, Step, Worker, json, ok, post, posting, start_with, until};

const ASK: (&str, &str) = ("/generate", r#"{"text":"x"}"#);
const STREAM: (&str, &str) = ("/generate", r#"{"text":"x","stream":true}"#);
const PROMPT: Duration = Duration::from_secs(1);

fn text(text: &str) -> Step {
    Step::Send(text.as_bytes().to_vec())
}

fn head_of(length: usize) -> Step {
    text(&format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{{"
    ))
}

fn events(events: &[&str]) -> Step {
    let mut reply =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned();
    reply.extend(events.iter().map(|event| chunk(event)));
    text(&reply)
}

fn chunk(event: &str) -> String {
    let event = format!("data: {event}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

/// Without retries, and with breakers that open at the first failure.
fn touchy(prefill: &[&Worker], decode: &[&Worker]) -> Options {
    Options {
        disable_retries: true,
        cb_failure_threshold: 1,
        disable_health_check: true,
        ..pair_options(prefill, decode)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg {
    Prefill,
    Decode,
}

/// What a leg does, the status that the client gets, and whether it is held against the worker.
fn faults() -> Vec<(&'static str, Vec<Step>, u16, bool)> {
    vec![
        ("500", json(500, r#"{"message":"boom"}"#), 500, true),
        ("503", json(503, r#"{"message":"starting"}"#), 503, true),
        ("422", json(422, r#"{"message":"bad"}"#), 422, false),
        ("401", json(401, r#"{"message":"no key"}"#), 401, false),
        ("400", json(400, r#"{"message":"too long"}"#), 400, false),
        ("closes", vec![Step::Close], 502, true),
        ("resets", vec![Step::Reset], 502, true),
        (
            "no HTTP",
            vec![text("hello\r\n\r\n"), Step::Close],
            502,
            true,
        ),
        (
            "cut in its first event",
            vec![
                text(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: {\"t",
                ),
                Step::Close,
            ],
            502,
            true,
        ),
        (
            "error frame",
            vec![
                events(&[r#"{"error":{"message":"boom","code":500}}"#, "[DONE]"]),
                Step::Hang,
            ],
            500,
            true,
        ),
        (
            "abort frame",
            vec![events(&[
                r#"{"text":"","meta_info":{"finish_reason":{"type":"abort","message":"boom","status_code":500}}}"#,
                "[DONE]",
            ])],
            500,
            true,
        ),
    ]
}

#[tokio::test]
async fn failure_of_either_leg_is_the_answer_at_once_and_ends_the_other() {
    for leg in [Leg::Prefill, Leg::Decode] {
        for (name, steps, status, blamed) in faults() {
            let case = format!("{leg:?} {name}");
            // The other leg has got the request by then.
            let mut later = vec![Step::Pause(Duration::from_millis(30))];
            later.extend(steps);
            let (faulty, waiting) = (doing(later).await, doing(vec![Step::Hang]).await);
            let (prefill, decode) = match leg {
                Leg::Prefill => (&faulty, &waiting),
                Leg::Decode => (&waiting, &faulty),
            };
            let gateway = start_with(touchy(&[prefill], &[decode])).await;
            let reply = timeout(PROMPT, post(&gateway, STREAM.0, STREAM.1)).await;
            assert!(reply.is_ok(), "{case}: no answer");
            let reply = reply.unwrap();
            assert_eq!(reply.status, status, "{case}: {}", reply.text());
            has_seen_the_end(&waiting).await;
            until(|| async { gateway.in_flight().await == 0 }).await;
            let open = open_circuits(&gateway).await;
            let expected: Vec<String> = blamed.then(|| faulty.url()).into_iter().collect();
            assert_eq!(open, expected, "{case}");
        }
    }
}

#[tokio::test]
async fn refusal_by_either_leg_is_the_answer_and_is_not_tried_again() {
    for leg in [Leg::Prefill, Leg::Decode] {
        for status in [400, 422] {
            let mut steps = vec![Step::Pause(Duration::from_millis(30))];
            steps.extend(json(status, r#"{"message":"no"}"#));
            let (one, two) = (doing(steps.clone()).await, doing(steps).await);
            let waiting = doing(vec![Step::Hang]).await;
            let options = match leg {
                Leg::Prefill => pair_options(&[&one, &two], &[&waiting]),
                Leg::Decode => pair_options(&[&waiting], &[&one, &two]),
            };
            let gateway = start_with(options).await;
            let reply = timeout(PROMPT, post(&gateway, ASK.0, ASK.1)).await.unwrap();
            assert_eq!(reply.status, status, "{leg:?}");
            assert_eq!(asked(&one).len() + asked(&two).len(), 1, "{leg:?} {status}");
            has_seen_the_end(&waiting).await;
            until(|| async { gateway.in_flight().await == 0 }).await;
        }
    }
}

#[tokio::test]
async fn refused_credentials_are_tried_with_another_worker_once() {
    for leg in [Leg::Prefill, Leg::Decode] {
        for others in [200, 401] {
            let by_status = |status| {
                let mut steps = vec![Step::Pause(Duration::from_millis(30))];
                steps.extend(json(status, r#"{"message":"no"}"#));
                steps
            };
            let (one, two) = (doing(by_status(401)).await, doing(by_status(others)).await);
            // It would say nothing until the other one has done its part.
            let beside = doing([vec![Step::Pause(Duration::from_millis(90))], ok()].concat()).await;
            let options = match leg {
                Leg::Prefill => pair_options(&[&one, &two], &[&beside]),
                Leg::Decode => pair_options(&[&beside], &[&one, &two]),
            };
            let gateway = start_with(options).await;
            while asked(&one).is_empty() {
                let reply = post(&gateway, ASK.0, ASK.1).await;
                assert_eq!(reply.status, others, "{leg:?}");
            }
            assert!(others == 200 || asked(&one).len() + asked(&two).len() == 2);
            until(|| async { gateway.in_flight().await == 0 }).await;
        }
    }
}

#[tokio::test]
async fn worker_that_refuses_connections_is_told_at_once() {
    for leg in [Leg::Prefill, Leg::Decode] {
        let (gone, waiting) = (doing(ok()).await, doing(vec![Step::Hang]).await);
        let (prefill, decode) = match leg {
            Leg::Prefill => (&gone, &waiting),
            Leg::Decode => (&waiting, &gone),
        };
        let gateway = start_with(touchy(&[prefill], &[decode])).await;
        gone.kill().await;
        let reply = timeout(PROMPT, post(&gateway, ASK.0, ASK.1)).await.unwrap();
        assert_eq!(reply.status, 502, "{leg:?}");
        until(|| async { gateway.in_flight().await == 0 }).await;
    }
}

#[tokio::test]
async fn silent_leg_is_given_up_at_the_limit_and_ends_the_other() {
    for leg in [Leg::Prefill, Leg::Decode] {
        for steps in [vec![Step::Hang], vec![head_of(100), Step::Hang]] {
            let mid_body = steps.len() > 1;
            let (silent, other) = (doing(steps).await, doing(vec![Step::Hang]).await);
            let (prefill, decode) = match leg {
                Leg::Prefill => (&silent, &other),
                Leg::Decode => (&other, &silent),
            };
            let mut options = touchy(&[prefill], &[decode]);
            options.request_timeout_secs = 1;
            let gateway = start_with(options).await;
            let begun = Instant::now();
            let mut client = Client::to(&gateway).await;
            client.send(&posting(ASK.0, "", ASK.1)).await;
            let reply = client.try_reply().await.unwrap();
            // A head that has passed cannot be taken back: the body is cut.
            let relayed = mid_body && leg == Leg::Decode;
            assert_eq!(
                reply.status,
                if relayed { 200 } else { 504 },
                "{leg:?} {mid_body}"
            );
            assert!(!relayed || !reply.whole);
            assert!(begun.elapsed() < 2 * PROMPT);
            has_seen_the_end(&silent).await;
            until(|| async { gateway.in_flight().await == 0 }).await;
        }
    }
}

#[tokio::test]
async fn decode_is_relayed_while_prefill_is_still_busy() {
    let prefill = doing(vec![
        Step::Wait,
        text("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
    ])
    .await;
    let decode = doing(vec![
        events(&[r#"{"text":"a"}"#]),
        Step::Wait,
        text(&(chunk("[DONE]") + "0\r\n\r\n")),
    ])
    .await;
    let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
    let mut client = Client::to(&gateway).await;
    client.send(&posting(STREAM.0, "", STREAM.1)).await;
    client.read_until(r#"{"text":"a"}"#).await;
    prefill.go_on();
    until(|| async { gateway.in_flight().await == 1 }).await;
    decode.go_on();
    client.read_until("[DONE]").await;
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert!(aborted(&prefill).is_empty() && aborted(&decode).is_empty());
    assert_eq!((prefill.disconnects(), decode.disconnects()), (0, 0));
}

#[tokio::test]
async fn prefill_that_answers_after_the_reply_is_not_ended_for_that() {
    let prefill = doing(vec![Step::Wait, ok().remove(0)]).await;
    let decode = doing(ok()).await;
    let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
    let reply = post(&gateway, ASK.0, ASK.1).await;
    assert_eq!(reply.status, 200);
    assert!(!reply.header("x-smg-routed-prefill-id").is_empty());
    until(|| async { gateway.in_flight().await == 1 }).await;
    prefill.go_on();
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert!(aborted(&prefill).is_empty() && aborted(&decode).is_empty());
    assert_eq!(prefill.disconnects(), 0);
}

#[tokio::test]
async fn prefill_that_dies_behind_the_first_token_is_blamed_and_the_stream_goes_on() {
    let prefill = doing(vec![Step::Wait, Step::Reset]).await;
    let decode = doing(vec![
        events(&[r#"{"text":"a"}"#]),
        Step::Wait,
        text(&(chunk("[DONE]") + "0\r\n\r\n")),
    ])
    .await;
    let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
    let mut client = Client::to(&gateway).await;
    client.send(&posting(STREAM.0, "", STREAM.1)).await;
    client.read_until(r#"{"text":"a"}"#).await;
    prefill.go_on();
    until(|| async { open_circuits(&gateway).await == [prefill.url()] }).await;
    decode.go_on();
    client.read_until("[DONE]").await;
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert!(aborted(&decode).is_empty());
}

#[tokio::test]
async fn prefill_that_dies_amid_its_own_answer_is_blamed_and_decode_answers() {
    let prefill = doing(vec![head_of(100), Step::Wait, Step::Reset]).await;
    let decode = doing([vec![Step::Wait], ok()].concat()).await;
    let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
    let mut client = Client::to(&gateway).await;
    client.send(&posting(ASK.0, "", ASK.1)).await;
    until(|| async { !asked(&prefill).is_empty() && !asked(&decode).is_empty() }).await;
    until(|| async {
        prefill.go_on();
        open_circuits(&gateway).await == [prefill.url()]
    })
    .await;
    decode.go_on();
    client.read_until("200 OK").await;
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert!(aborted(&decode).is_empty());
}

#[tokio::test]
async fn prefill_that_dies_before_the_first_token_ends_a_stream_that_has_a_head() {
    let prefill = doing(vec![Step::Wait, Step::Reset]).await;
    // A comment passes when it has been held back for a second.
    let comment = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n8\r\n: wait\n\n\r\n";
    let decode = doing(vec![text(comment), Step::Hang]).await;
    let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
    let mut client = Client::to(&gateway).await;
    client.send(&posting(STREAM.0, "", STREAM.1)).await;
    client.read_until(": wait").await;
    prefill.go_on();
    let end = client.read_until("stream_error").await;
    assert!(client.closed().await);
    assert!(!end.contains("[DONE]"), "{end}");
    has_seen_the_end(&decode).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn decode_that_dies_amid_its_stream_ends_it_with_an_error_and_no_done() {
    let prefill = doing(vec![Step::Hang]).await;
    let decode = doing(vec![events(&[r#"{"text":"a"}"#]), Step::Wait, Step::Reset]).await;
    let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
    let mut client = Client::to(&gateway).await;
    client.send(&posting(STREAM.0, "", STREAM.1)).await;
    client.read_until(r#"{"text":"a"}"#).await;
    decode.go_on();
    let end = client.read_until("stream_error").await;
    assert!(client.closed().await);
    assert!(!end.contains("[DONE]"), "{end}");
    has_seen_the_end(&prefill).await;
    assert_eq!(open_circuits(&gateway).await, [decode.url()]);
}

#[tokio::test]
async fn client_that_leaves_ends_both_legs() {
    for (path, sent) in [ASK, STREAM] {
        let (prefill, decode) = (doing(vec![Step::Hang]).await, doing(vec![Step::Hang]).await);
        let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
        let mut client = Client::to(&gateway).await;
        client.send(&posting(path, "", sent)).await;
        until(|| async { asked(&prefill).len() + asked(&decode).len() == 2 }).await;
        drop(client);
        has_seen_the_end(&prefill).await;
        has_seen_the_end(&decode).await;
        until(|| async { gateway.in_flight().await == 0 }).await;
        assert!(open_circuits(&gateway).await.is_empty());
    }
}

#[tokio::test]
async fn failed_pair_is_tried_again_with_another_worker_in_place_of_the_faulty_one() {
    for leg in [Leg::Prefill, Leg::Decode] {
        let faulty = doing(json(500, r#"{"message":"boom"}"#)).await;
        // A decode worker does not answer before the prefill worker.
        let mut later = vec![Step::Pause(Duration::from_millis(50))];
        later.extend(ok());
        let (good, partner) = match leg {
            Leg::Prefill => (doing(ok()).await, doing(later).await),
            Leg::Decode => (doing(later).await, doing(ok()).await),
        };
        let mut options = match leg {
            Leg::Prefill => pair_options(&[&faulty, &good], &[&partner]),
            Leg::Decode => pair_options(&[&partner], &[&faulty, &good]),
        };
        options.retry_initial_backoff_ms = 1;
        let gateway = start_with(options).await;
        for _ in 0..4 {
            assert_eq!(post(&gateway, ASK.0, ASK.1).await.status, 200, "{leg:?}");
        }
        assert_eq!(asked(&good).len(), 4, "{leg:?}");
        assert!(!asked(&faulty).is_empty());
        let rooms: std::collections::BTreeSet<_> = asked(&partner)
            .iter()
            .map(|it| super::stage::body(it)["bootstrap_room"].to_string())
            .collect();
        assert_eq!(rooms.len(), asked(&partner).len(), "a room was used twice");
        assert_eq!(gateway.in_flight().await, 0);
    }
}

#[tokio::test]
async fn echo_of_a_lost_prefill_worker_is_not_held_against_the_decode_worker() {
    let lost = r#"{"object":"error","message":"Decode transfer failed: timed out after 1.0s in KVPoll.WaitingForInput","code":500}"#;
    let prefill = doing(vec![Step::Hang]).await;
    let decode = doing(json(500, lost)).await;
    let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
    assert_eq!(post(&gateway, ASK.0, ASK.1).await.status, 500);
    assert_eq!(open_circuits(&gateway).await, [prefill.url()]);
    // A prefill worker that has answered is not to blame.
    let prefill = doing(ok()).await;
    let decode = engine(move |_| {
        let mut steps = vec![Step::Pause(Duration::from_millis(100))];
        steps.extend(json(500, lost));
        steps
    })
    .await;
    let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
    assert_eq!(post(&gateway, ASK.0, ASK.1).await.status, 500);
    assert_eq!(open_circuits(&gateway).await, [decode.url()]);
}

#[tokio::test]
async fn slow_legs_are_waited_for() {
    let slow = || {
        let mut steps = vec![Step::Pause(Duration::from_millis(300))];
        steps.extend(ok());
        steps
    };
    for (prefill, decode) in [(slow(), ok()), (ok(), slow()), (slow(), slow())] {
        let (prefill, decode) = (doing(prefill).await, doing(decode).await);
        let gateway = start_with(touchy(&[&prefill], &[&decode])).await;
        let reply = post(&gateway, ASK.0, ASK.1).await;
        assert_eq!((reply.status, reply.whole), (200, true));
        until(|| async { gateway.in_flight().await == 0 }).await;
        assert!(open_circuits(&gateway).await.is_empty());
    }
}
