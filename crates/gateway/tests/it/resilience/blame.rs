//! Whose fault a failure is: the worker's, the request's, or the gateway's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::support::{
    Client, Received, Running, Step, Worker, aimed, circuit, get, json, ok, post, posting, raw,
    start_with, touchy, until,
};

#[tokio::test]
async fn server_error_that_a_second_worker_repeats_is_held_against_neither() {
    let workers = [
        Worker::doing(json(500, "{}")).await,
        Worker::doing(json(500, "{}")).await,
    ];
    let mut options = touchy(&[&workers[0], &workers[1]]);
    options.disable_retries = false;
    options.retry_max_retries = 2;
    let gateway = start_with(options).await;
    for _ in 0..2 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 500);
    }
    let asked = workers[0].received().len() + workers[1].received().len();
    let metrics = gateway.metrics().await;
    let failures = metrics
        .lines()
        .filter(|line| line.starts_with("smg_worker_cb_outcomes_total{outcome=\"failure\""));
    let failures: usize = failures
        .map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
        .sum();
    assert_eq!((asked, failures), (4, 0));
}

#[tokio::test]
async fn good_request_is_served_after_requests_that_fail_everywhere() {
    let script = |request: &Received| {
        if request.head.starts_with("GET ") || !is_poison(request) {
            ok()
        } else {
            json(500, "{}")
        }
    };
    for count in [1, 4] {
        let mut workers = Vec::new();
        for _ in 0..count {
            workers.push(Worker::scripted(script).await);
        }
        let mut options = touchy(&workers.iter().collect::<Vec<_>>());
        options.disable_retries = false;
        let gateway = start_with(options).await;
        for _ in 0..20 {
            let bad = post(&gateway, "/generate", r#"{"text":"poison"}"#).await;
            assert_eq!(bad.status, 500);
        }
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
        let readiness = get(&gateway, "/readiness").await.json();
        assert_eq!(readiness["healthy_workers"], count);
    }
}

#[tokio::test]
async fn request_on_which_two_workers_hang_up_goes_to_no_third() {
    for status in [StatusOf::Alive, StatusOf::Dead] {
        let mut workers = Vec::new();
        for _ in 0..6 {
            workers.push(Worker::scripted(move |request| fatal(request, status)).await);
        }
        let mut options = touchy(&workers.iter().collect::<Vec<_>>());
        options.disable_retries = false;
        options.cb_failure_threshold = 100;
        let gateway = start_with(options).await;
        // Connections to every worker are kept.
        for _ in 0..6 {
            assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
        }
        let reply = post(&gateway, "/generate", r#"{"text":"poison"}"#).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (502, "request_ends_workers")
        );
        let hit = |worker: &&Worker| {
            let received = worker.received();
            received.iter().any(is_poison)
        };
        assert_eq!(workers.iter().filter(hit).count(), 2);
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
}

#[tokio::test]
async fn request_on_trial_that_two_workers_hang_up_on_goes_to_no_third() {
    let failing = Arc::new(AtomicBool::new(true));
    let mut workers = Vec::new();
    for _ in 0..4 {
        let failing = Arc::clone(&failing);
        let script = move |request: &Received| {
            if failing.load(Relaxed) && request.path() == "/generate" {
                json(500, "{}")
            } else {
                fatal(request, StatusOf::Alive)
            }
        };
        workers.push(Worker::scripted(script).await);
    }
    let mut options = touchy(&workers.iter().collect::<Vec<_>>());
    options.disable_retries = false;
    let gateway = start_with(options).await;
    for index in 0..workers.len() {
        let aimed = format!("x-smg-target-worker: {index}\r\n");
        for _ in 0..3 {
            raw(&gateway, &posting("/generate", &aimed, "{}")).await;
        }
        assert_eq!(circuit(&gateway, index).await, "open");
    }
    failing.store(false, Relaxed);
    for index in 0..workers.len() {
        until(|| async { circuit(&gateway, index).await == "half_open" }).await;
    }
    let reply = post(&gateway, "/generate", r#"{"text":"poison"}"#).await;
    assert_eq!(reply.code(), "request_ends_workers");
    let hit = |worker: &&Worker| worker.received().iter().any(is_poison);
    assert_eq!(workers.iter().filter(hit).count(), 2);
}

fn is_poison(request: &Received) -> bool {
    String::from_utf8_lossy(&request.body).contains("poison")
}

/// What is left of a worker after a request that it cannot bear.
#[derive(Clone, Copy)]
enum StatusOf {
    Alive,
    Dead,
}

fn fatal(request: &Received, status: StatusOf) -> Vec<Step> {
    match status {
        _ if !is_poison(request) => ok(),
        StatusOf::Alive => vec![Step::Close],
        StatusOf::Dead => vec![Step::Reset],
    }
}

/// A stream that comes in one piece.
fn one_chunk(events: &str) -> Vec<Step> {
    let chunk = format!("{:x}\r\n{events}\r\n0\r\n\r\n", events.len());
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    vec![Step::Send(format!("{head}{chunk}").into_bytes())]
}

#[tokio::test]
async fn refusal_after_the_first_event_in_the_same_piece_goes_to_the_client() {
    let events = "data: {\"text\":\"hi\"}\n\ndata: {\"error\":{\"code\":503}}\n\n";
    let worker = Worker::doing(one_chunk(events)).await;
    let gateway = start_with(touchy(&[&worker])).await;
    let reply = post(&gateway, "/generate", r#"{"stream":true}"#).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, events));
}

#[tokio::test]
async fn refusal_in_the_first_event_of_a_stream_is_tried_elsewhere() {
    let full = "data: {\"error\":{\"message\":\"The request queue is full.\",\"code\":503}}\n\n";
    let fine = "data: {\"text\":\"hi\"}\n\n";
    let (busy, idle) = (
        Worker::doing(one_chunk(full)).await,
        Worker::doing(one_chunk(fine)).await,
    );
    let mut options = touchy(&[&busy, &idle]);
    options.disable_retries = false;
    let gateway = start_with(options).await;
    for _ in 0..6 {
        let reply = post(&gateway, "/generate", r#"{"stream":true}"#).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, fine));
    }
    assert_eq!(circuit(&gateway, 0).await, "closed");
    // Without another worker it is a refusal for the client, too.
    let reply = aimed(&gateway).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "worker_overloaded")
    );
    assert_eq!(reply.header("retry-after"), "1");
}

#[tokio::test]
async fn refusal_behind_comments_is_tried_elsewhere_and_comments_alone_reach_the_client() {
    let full = "\u{feff}: hello\r\r\n\n: still here\n\n\
        event: error\rdata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\r\r";
    let fine = "data: {\"text\":\"hi\"}\n\n";
    let (busy, idle) = (
        Worker::doing(one_chunk(full)).await,
        Worker::doing(one_chunk(fine)).await,
    );
    let mut options = touchy(&[&busy, &idle]);
    options.disable_retries = false;
    let gateway = start_with(options).await;
    for _ in 0..4 {
        let reply = post(&gateway, "/v1/messages", r#"{"stream":true}"#).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, fine));
    }
    assert!(!busy.received().is_empty());

    let mut steps = one_chunk(": hello\n\n");
    steps.truncate(1);
    if let Some(Step::Send(bytes)) = steps.first_mut() {
        bytes.truncate(bytes.len() - "0\r\n\r\n".len());
    }
    steps.push(Step::Hang);
    let silent = Worker::doing(steps).await;
    let gateway = start_with(touchy(&[&silent])).await;
    let mut client = Client::to(&gateway).await;
    client
        .send(&posting("/generate", "", r#"{"stream":true}"#))
        .await;
    client.read_until(": hello\n\n").await;
}

#[tokio::test]
async fn stream_that_ends_before_its_first_event_is_tried_elsewhere() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    for comments in ["", "b\r\n: hello\n\n\n\n\r\n"] {
        let begun = Step::Send(format!("{head}{comments}").into_bytes());
        let broken = Worker::doing(vec![begun, Step::Close]).await;
        let well = Worker::doing(ok()).await;
        let mut options = touchy(&[&broken, &well]);
        options.disable_retries = false;
        let gateway = start_with(options).await;
        for _ in 0..4 {
            let reply = post(&gateway, "/generate", r#"{"stream":true}"#).await;
            assert_eq!(reply.text(), r#"{"ok":true}"#, "{comments:?}");
        }
        assert!(!broken.received().is_empty());
    }
}

#[tokio::test]
async fn refused_credentials_of_the_gateways_are_tried_elsewhere_and_held_against_the_worker() {
    for (status, path) in [
        (401, "/generate"),
        (403, "/generate"),
        (404, "/v1/embeddings"),
    ] {
        let odd = Worker::doing(json(status, "{}")).await;
        let (good, third) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
        let mut options = touchy(&[&good, &odd, &third]);
        options.disable_retries = false;
        options.api_key = Some("k".to_owned().into());
        let gateway = start_with(options).await;
        let request = posting(path, "authorization: Bearer k\r\n", "{}");
        for _ in 0..12 {
            assert_eq!(raw(&gateway, &request).await.status, 200, "{status}");
        }
        let workers = get_with_key(&gateway, "/workers").await;
        assert_eq!(workers["workers"][1]["circuit_breaker"], "open", "{status}");
    }
}

#[tokio::test]
async fn refused_credentials_do_not_have_the_last_word_while_others_recover() {
    let busy = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&busy);
    let good = Worker::scripted(move |request| match request.path() {
        "/generate" if asked.fetch_add(1, Relaxed) == 0 => json(503, "{}"),
        _ => ok(),
    })
    .await;
    let odd = Worker::scripted(|request| match request.path() {
        "/generate" => json(401, "{}"),
        _ => ok(),
    })
    .await;
    let mut options = touchy(&[&good, &odd]);
    options.disable_retries = false;
    let gateway = start_with(options).await;
    // The first worker is busy, the second one odd; the first one serves in the second round.
    let reply = post(&gateway, "/generate", "{}").await;
    assert_eq!((reply.status, busy.load(Relaxed)), (200, 2));
    let refused = odd.received();
    let refused = refused.iter().filter(|it| it.path() == "/generate");
    assert_eq!(refused.count(), 1);
}

async fn get_with_key(gateway: &Running, path: &str) -> serde_json::Value {
    let request = format!("GET {path} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer k\r\n\r\n");
    raw(gateway, request.as_bytes()).await.json()
}

#[tokio::test]
async fn refused_key_of_the_clients_own_is_its_answer_and_a_missing_one_the_workers_fault() {
    let odd = Worker::doing(json(401, "{}")).await;
    let (good, third) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let mut options = touchy(&[&good, &odd, &third]);
    options.disable_retries = false;
    options.cb_failure_threshold = 100;
    let gateway = start_with(options).await;
    let mut refused = 0;
    for line in ["", "authorization: Bearer mine\r\n"] {
        for _ in 0..6 {
            let reply = raw(&gateway, &posting("/generate", line, "{}")).await;
            refused += usize::from(reply.status == 401);
        }
        assert_eq!(refused == 0, line.is_empty());
    }
}

#[tokio::test]
async fn refused_credentials_everywhere_are_the_clients_answer_and_no_workers_fault() {
    let workers = [
        Worker::doing(json(401, "{}")).await,
        Worker::doing(json(401, "{}")).await,
    ];
    let mut options = touchy(&[&workers[0], &workers[1]]);
    options.disable_retries = false;
    options.api_key = Some("k".to_owned().into());
    let gateway = start_with(options).await;
    let request = posting("/generate", "authorization: Bearer k\r\n", "{}");
    for _ in 0..12 {
        assert_eq!(raw(&gateway, &request).await.status, 401);
    }
    let shown = get_with_key(&gateway, "/workers").await;
    for worker in shown["workers"].as_array().unwrap() {
        assert_eq!(worker["circuit_breaker"], "closed");
    }
    let asked: usize = workers.iter().map(|worker| worker.received().len()).sum();
    assert_eq!(asked, 24, "each request goes to both workers, once");
}
