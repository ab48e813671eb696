//! Streams: relayed as they come, at the client's pace, and dropped when it leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::support::{Client, Step, Worker, chat_stream, json, options, start, start_with, until};

fn chunk(text: &str) -> Step {
    Step::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes())
}

fn head() -> Step {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    Step::Send(head.into())
}

fn end() -> Step {
    Step::Send(b"0\r\n\r\n".to_vec())
}

#[tokio::test]
async fn events_arrive_as_they_are_sent() {
    let worker = Worker::doing(vec![
        head(),
        chunk("data: 1\n\n"),
        Step::Wait,
        chunk("data: 2\n\ndata: 3"),
        Step::Wait,
        chunk("\n\ndata: [DONE]\n\n"),
        end(),
    ])
    .await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    let first = client.read_until("data: 1\n\n").await;
    assert!(first.contains("content-type: text/event-stream") && !first.contains("data: 2"));
    assert_eq!(gateway.in_flight().await, 1);
    worker.go_on();
    assert!(!client.read_until("data: 3").await.contains("DONE"));
    worker.go_on();
    let reply = client.reply().await;
    assert_eq!(
        reply.text(),
        "data: 1\n\ndata: 2\n\ndata: 3\n\ndata: [DONE]\n\n"
    );
    assert!(reply.whole);
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn a_client_that_leaves_amid_a_stream_ends_it_at_the_worker() {
    let worker = Worker::doing(vec![head(), chunk("data: 1\n\n"), Step::Hang]).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.read_until("data: 1").await;
    drop(client);
    until(|| async { worker.disconnects() == 1 }).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert!(
        gateway
            .metrics()
            .await
            .contains(r#"error_code="client_closed_request""#)
    );
}

#[tokio::test]
async fn a_client_that_leaves_while_the_worker_is_silent_ends_it_too() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    until(|| async { worker.received().len() == 1 }).await;
    assert_eq!(gateway.in_flight().await, 1);
    drop(client);
    until(|| async { worker.disconnects() == 1 }).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn a_slow_client_slows_the_worker_instead_of_filling_memory() {
    // 64 MiB in 64 kB chunks: far more than all socket buffers on the way hold.
    let mut steps = vec![head()];
    steps.extend(std::iter::repeat_n(chunk(&"x".repeat(65_536)), 1024));
    steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
    let worker = Worker::doing(steps).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.read_until("xxxx").await;
    // The client does not read: once the socket buffers on the way are full, the worker can send no more.
    let mut before = usize::MAX;
    while worker.sent() != before {
        before = worker.sent();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        before < 40 * 1024 * 1024,
        "{before} bytes are held on the way"
    );
    let reply = client.reply().await;
    assert_eq!((reply.body.len(), reply.whole), (64 * 1024 * 1024, true));
}

#[tokio::test]
async fn request_sent_amid_a_stream_is_answered_behind_it_and_no_byte_is_out_of_place() {
    let piece = |n: usize| format!("data: {n} {}\n\n", "x".repeat(n * n % 30_011));
    let pieces: Vec<_> = (0..200).map(piece).collect();
    let mut steps = vec![head()];
    for piece in &pieces {
        // So that nearly each comes in a read of its own.
        steps.extend([chunk(piece), Step::Pause(Duration::from_micros(300))]);
    }
    steps.push(end());
    let worker = Worker::doing(steps).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.read_until("data: 3 ").await;
    client.send(&chat_stream()).await;
    for _ in 0..2 {
        let reply = client.reply().await;
        assert!(reply.whole && reply.text() == pieces.concat());
    }
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert_eq!(worker.disconnects(), 0);
}

#[tokio::test]
async fn a_thousand_streams_at_once_all_end_well() {
    let mut steps = vec![head()];
    steps.extend((0..20).map(|n| chunk(&format!("data: {n}\n\n"))));
    steps.push(end());
    let worker = Worker::doing(steps).await;
    let gateway = start(&[&worker]).await;
    let clients = (0..1000).map(|_| async {
        let mut client = Client::to(&gateway).await;
        client.send(&chat_stream()).await;
        let reply = client.reply().await;
        assert!(reply.whole && reply.text().ends_with("data: 19\n\n"));
    });
    futures_util::future::join_all(clients).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert_eq!(worker.disconnects(), 0);
}

#[tokio::test]
async fn stream_whose_worker_is_lost_ends_with_a_last_event_soon_after_its_probes_fail() {
    let frozen = Arc::new(AtomicBool::new(false));
    let hangs = Arc::clone(&frozen);
    let worker = Worker::listening(0, move |request| {
        if request.head.starts_with("POST") {
            return vec![head(), chunk("data: {\"a\":1}\n\n"), Step::Hang];
        }
        if hangs.load(SeqCst) {
            vec![Step::Hang]
        } else {
            json(200, "{}")
        }
    })
    .await;
    let mut options = options(&[&worker]);
    options.health_check_timeout_secs = 1;
    options.health_failure_threshold = 2;
    let gateway = start_with(options).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.read_until("data: {\"a\":1}").await;
    frozen.store(true, SeqCst);
    let rest = client.read_until("stream_error").await;
    assert!(rest.contains("worker was lost"), "{rest}");
    assert!(client.closed().await);
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn stream_that_came_in_one_piece_stays_a_stream() {
    let text = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
        9\r\ndata: 1\n\n\r\n0\r\n\r\n";
    let worker = Worker::doing(vec![Step::Send(text.into())]).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    let reply = client.reply().await;
    assert_eq!(reply.header("transfer-encoding"), "chunked");
    assert_eq!((reply.text().as_str(), reply.whole), ("data: 1\n\n", true));
}
