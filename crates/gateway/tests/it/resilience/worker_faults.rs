//! Workers that refuse, break, stall or talk nonsense.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Client, Step, Worker, generate, ok, options, post, start, start_with, until};

async fn code_for(steps: Vec<Step>) -> (u16, String) {
    let worker = Worker::doing(steps).await;
    let gateway = start(&[&worker]).await;
    let reply = post(&gateway, "/generate", "{}").await;
    assert_eq!(gateway.in_flight().await, 0);
    (reply.status, reply.code())
}

fn bytes(text: &str) -> Step {
    Step::Send(text.as_bytes().to_vec())
}

#[tokio::test]
async fn nonsense_and_early_ends_are_bad_gateway() {
    let broken = (502, "call_upstream_request_failed".to_owned());
    for steps in [
        vec![bytes("220 smtp ready\r\n\r\n"), Step::Close],
        vec![
            bytes("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"),
            Step::Hang,
        ],
        vec![bytes("HTTP/1.1 200 OK\r\nconte"), Step::Close],
        vec![Step::Close],
    ] {
        assert_eq!(code_for(steps.clone()).await, broken, "{steps:?}");
    }
}

#[tokio::test]
async fn a_worker_that_is_gone_is_bad_gateway() {
    let worker = Worker::doing(vec![Step::Close]).await;
    let mut options = options(&[&worker]);
    options.health_check_interval_secs = 3600;
    let gateway = start_with(options).await;
    drop(worker);
    let refused = || async {
        post(&gateway, "/generate", "{}").await.code() == "call_upstream_connection_failed"
    };
    until(refused).await;
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn silence_before_headers_is_a_gateway_timeout() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let mut options = options(&[&worker]);
    options.request_timeout_secs = 1;
    let gateway = start_with(options).await;
    let reply = post(&gateway, "/generate", "{}").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (504, "call_upstream_timeout")
    );
    until(|| async { worker.disconnects() == 1 }).await;
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn silence_amid_a_body_ends_it_abnormally() {
    let half = bytes("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    let worker = Worker::doing(vec![half, Step::Hang]).await;
    let mut options = options(&[&worker]);
    options.request_timeout_secs = 1;
    let gateway = start_with(options).await;
    let reply = post(&gateway, "/generate", "{}").await;
    assert_eq!(
        (reply.status, reply.text().as_str(), reply.whole),
        (200, "half", false)
    );
    until(|| async { gateway.in_flight().await == 0 && worker.disconnects() == 1 }).await;
}

#[tokio::test]
async fn a_body_cut_short_ends_abnormally_for_the_client_too() {
    for head in [
        "content-length: 10\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let half = bytes(&format!("HTTP/1.1 200 OK\r\n{head}"));
        let worker = Worker::doing(vec![half, Step::Close]).await;
        let gateway = start(&[&worker]).await;
        let reply = post(&gateway, "/generate", "{}").await;
        assert_eq!((reply.text().as_str(), reply.whole), ("half", false));
        until(|| async { gateway.in_flight().await == 0 }).await;
        let metrics = gateway.metrics().await;
        assert!(
            metrics.contains(r#"error_code="stream_error""#),
            "{metrics}"
        );
    }
}

#[tokio::test]
async fn a_kept_connection_that_died_costs_no_request() {
    static REQUESTS: AtomicUsize = AtomicUsize::new(0);
    // Every reply says keep-alive and is followed by a close, as llama-server does.
    let worker = Worker::scripted(|_| {
        REQUESTS.fetch_add(1, Ordering::SeqCst);
        [ok(), vec![Step::Close]].concat()
    })
    .await;
    let gateway = start(&[&worker]).await;
    for _ in 0..200 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
    assert_eq!(REQUESTS.load(Ordering::SeqCst), 200);
}

#[tokio::test]
async fn a_request_lost_with_its_kept_connection_is_sent_once_more() {
    // The second request on a connection is read and then dropped without a byte of reply.
    let worker = Worker::scripted(|request| {
        static SEEN: std::sync::Mutex<Vec<usize>> = std::sync::Mutex::new(Vec::new());
        let mut seen = SEEN.lock().unwrap();
        if seen.contains(&request.connection) {
            return vec![Step::Close];
        }
        seen.push(request.connection);
        ok()
    })
    .await;
    let gateway = start(&[&worker]).await;
    for _ in 0..20 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_counts() {
    let early = "HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    let worker = Worker::listening(0, move |request| {
        if request.path().starts_with("/generate") {
            vec![bytes(early), Step::Close]
        } else {
            ok()
        }
    })
    .await;
    let gateway = start(&[&worker]).await;
    let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(100_000));
    assert_eq!(post(&gateway, "/generate", &body).await.status, 413);
}

#[tokio::test]
async fn connections_to_workers_are_reused() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    for _ in 0..50 {
        client.send(&generate("")).await;
        assert_eq!(client.reply().await.status, 200);
    }
    let used: std::collections::HashSet<_> =
        worker.received().iter().map(|r| r.connection).collect();
    assert_eq!(used.len(), 1);
}

#[tokio::test]
async fn without_retries_a_request_that_a_worker_ran_for_a_while_is_not_sent_again() {
    // The second request on a connection runs for more than a second and is then dropped.
    let worker = Worker::scripted(|request| {
        let again = request.all("x-again");
        if again.is_empty() {
            ok()
        } else {
            vec![Step::Wait, Step::Close]
        }
    })
    .await;
    let mut options = options(&[&worker]);
    options.disable_retries = true;
    let gateway = start_with(options).await;
    let mut client = Client::asking(&gateway, "").await;
    assert_eq!(client.reply().await.status, 200);
    client.send(&generate("x-again: 1\r\n")).await;
    until(|| async { worker.received().len() == 2 }).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    worker.go_on();
    assert_eq!(client.reply().await.status, 502);
    assert_eq!(worker.received().len(), 2);
}

#[tokio::test]
async fn a_worker_that_began_to_answer_is_not_asked_again() {
    let worker = Worker::scripted(|request| {
        let processing = bytes("HTTP/1.1 102 Processing\r\n\r\n");
        if request.all("x-again").is_empty() {
            ok()
        } else {
            vec![processing, Step::Close]
        }
    })
    .await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    for (line, status) in [("", 200), ("x-again: 1\r\n", 502)] {
        client.send(&generate(line)).await;
        assert_eq!(client.reply().await.status, status);
    }
    assert_eq!(worker.received().len(), 2);
}

#[tokio::test]
async fn silence_amid_a_rerank_answer_is_a_gateway_timeout() {
    let half = bytes("HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n[{\"");
    let worker = Worker::doing(vec![half, Step::Hang]).await;
    let mut options = options(&[&worker]);
    options.request_timeout_secs = 1;
    let gateway = start_with(options).await;
    let reply = post(&gateway, "/v1/rerank", "{}").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (504, "call_upstream_timeout")
    );
    assert_eq!(gateway.in_flight().await, 0);
}
