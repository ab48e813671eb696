//! Clients that speak HTTP/2 with prior knowledge.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{
    DEADLINE, Running, Step, Worker, get, ok, options, post, start, start_with, until,
};

type Sender<B> = http2::SendRequest<B>;

async fn connect<B>(gateway: &Running) -> Sender<B>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(gateway.gateway.addr()).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn requests_and_replies_pass() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let mut sender = connect::<Full<Bytes>>(&gateway).await;
    let request = Request::post("http://g/generate?x=1")
        .header("content-type", "application/json")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::from("{\"text\":\"hi\"}"))
        .unwrap();
    let reply = sender.send_request(request).await.unwrap();
    assert_eq!(reply.status(), 200);
    assert_eq!(
        reply.into_body().collect().await.unwrap().to_bytes(),
        r#"{"ok":true}"#
    );
    let received = worker.received().remove(0);
    assert_eq!(received.path(), "/generate?x=1");
    assert_eq!(received.all("cookie"), ["a=1; b=2"]);
    assert_eq!(received.all("host").len(), 1);
}

/// Whether every lane still answers: connections are dealt to the idlest one.
async fn all_lanes_answer(gateway: &Running) {
    for _ in 0..8 {
        assert_eq!(get(gateway, "/health").await.status, 200);
    }
}

#[tokio::test]
async fn a_client_that_resets_amid_its_body_harms_no_other_request() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    for path in ["/nowhere", "/generate"] {
        for _ in 0..4 {
            let endless = StreamBody::new(futures_util::stream::pending::<
                Result<Frame<Bytes>, std::io::Error>,
            >());
            let mut sender = connect(&gateway).await;
            let request = Request::post(format!("http://g{path}"))
                .header("content-type", "application/json")
                .body(endless)
                .unwrap();
            let sent = timeout(Duration::from_millis(50), sender.send_request(request)).await;
            drop(sent);
            drop(sender);
        }
        all_lanes_answer(&gateway).await;
    }
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert!(worker.received().is_empty());
}

#[tokio::test]
async fn head_and_errors_work_too() {
    let gateway = start(&[]).await;
    let mut sender = connect::<Empty<Bytes>>(&gateway).await;
    for (method, path, status) in [
        ("HEAD", "/health", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models", 503),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://g{path}"));
        let reply = sender
            .send_request(request.body(Empty::new()).unwrap())
            .await
            .unwrap();
        assert_eq!(reply.status(), status);
        if method == "HEAD" {
            assert_eq!(reply.headers()["content-length"], "2");
            let body = reply.into_body().collect().await.unwrap().to_bytes();
            assert!(body.is_empty(), "{body:?}");
        }
    }
}

#[tokio::test]
async fn stream_that_its_client_does_not_take_ends_alone_and_the_connection_serves_on() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\ndata: {}\n\n\r\n", 60_008, "x".repeat(60_000));
    let worker = Worker::scripted(move |request| {
        if String::from_utf8_lossy(&request.body).contains("endless") {
            let chunks = (0..100).map(|_| Step::Send(chunk.clone().into_bytes()));
            [Step::Send(head.into())]
                .into_iter()
                .chain(chunks)
                .collect()
        } else {
            ok()
        }
    })
    .await;
    let mut options = options(&[&worker]);
    options.client_write_timeout_secs = 1;
    options.max_concurrent_requests = 1;
    options.queue_size = 0;
    let gateway = start_with(options).await;
    let mut sender = connect::<Full<Bytes>>(&gateway).await;
    let request = |body: &'static str| {
        Request::post("http://g/generate")
            .header("content-type", "application/json")
            .body(Full::from(body))
            .unwrap()
    };
    let stalled = sender
        .send_request(request(r#"{"text":"endless"}"#))
        .await
        .unwrap();
    assert_eq!(stalled.status(), 200);
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 429);
    until(|| async { gateway.in_flight().await == 0 }).await;
    // Its place among the requests is free, too, though hyper has not asked for more of it.
    until(|| async { post(&gateway, "/generate", "{}").await.status == 200 }).await;
    let reply = sender.send_request(request("{}")).await.unwrap();
    assert_eq!(reply.status(), 200);
    let page = gateway.metrics().await;
    let broken = "smg_http_responses_total{error_code=\"stream_error\"";
    assert!(page.contains(broken), "{page}");
    assert!(
        stalled.into_body().collect().await.is_err(),
        "it ends abnormally"
    );
}

#[tokio::test]
async fn many_requests_at_a_time_over_one_connection_are_all_answered() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let sender = connect::<Full<Bytes>>(&gateway).await;
    let requests = (0..200).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::post("http://g/generate")
                .header("content-type", "application/json")
                .body(Full::from("{}"))
                .unwrap();
            let reply = sender.send_request(request).await.unwrap();
            let status = reply.status();
            (
                status,
                reply.into_body().collect().await.unwrap().to_bytes(),
            )
        }
    });
    for (status, body) in join_all(requests).await {
        assert_eq!((status.as_u16(), body.is_empty()), (200, false));
    }
    assert_eq!(gateway.in_flight().await, 0);
}

/// Begins so many streams at a time over one connection; gives their bodies, each behind its
/// first piece.
async fn begin_streams(gateway: &Running, count: usize) -> Vec<(Bytes, Incoming)> {
    let sender = connect::<Full<Bytes>>(gateway).await;
    let streams = (0..count).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::post("http://g/v1/chat/completions")
                .header("content-type", "application/json")
                .body(Full::from(r#"{"stream":true}"#))
                .unwrap();
            let mut body = sender.send_request(request).await.unwrap().into_body();
            let first = body.frame().await.unwrap().unwrap();
            (first.into_data().unwrap(), body)
        }
    });
    timeout(DEADLINE, join_all(streams)).await.unwrap()
}

/// Lets the worker go on until the streams have ended; gives the rest of each.
async fn end_streams(worker: &Worker, streams: Vec<(Bytes, Incoming)>) -> Vec<Bytes> {
    let end = streams.into_iter().map(|(_, body)| body.collect());
    let mut end = pin!(join_all(end));
    loop {
        // The last of the worker's connections may not wait yet.
        worker.go_on();
        let soon = timeout(Duration::from_millis(20), end.as_mut());
        if let Ok(ended) = soon.await {
            return ended
                .into_iter()
                .map(|end| end.unwrap().to_bytes())
                .collect();
        }
    }
}

const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A stream of two events, between which the worker waits.
fn two_events() -> Vec<Step> {
    vec![
        Step::Send(format!("{STREAM_HEAD}9\r\ndata: 1\n\n\r\n").into()),
        Step::Wait,
        Step::Send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n".to_vec()),
    ]
}

#[tokio::test]
async fn two_thousand_streams_at_a_time_over_one_connection_are_all_served() {
    let worker = Worker::doing(two_events()).await;
    let gateway = start(&[&worker]).await;
    let streams = begin_streams(&gateway, 2000).await;
    assert!(streams.iter().all(|(first, _)| first == "data: 1\n\n"));
    assert_eq!(gateway.in_flight().await, 2000);
    let rests = end_streams(&worker, streams).await;
    assert!(rests.iter().all(|rest| rest == "data: 2\n\n"));
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn header_list_as_large_as_over_http_1_passes() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let mut sender = connect::<Full<Bytes>>(&gateway).await;
    let mut request = Request::post("http://g/generate")
        .header("content-type", "application/json")
        .body(Full::from("{}"))
        .unwrap();
    for part in 0..60 {
        let name = format!("x-part-{part}")
            .parse::<http::HeaderName>()
            .unwrap();
        let value = "v".repeat(1024).parse().unwrap();
        request.headers_mut().insert(name, value);
    }
    let reply = sender.send_request(request).await.unwrap();
    assert_eq!(reply.status(), 200);
    let received = worker.received().remove(0);
    assert_eq!(received.all("x-part-59"), ["v".repeat(1024)]);
}

#[tokio::test]
async fn client_that_opens_streams_only_to_reset_them_loses_its_connection() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let gateway = start(&[&worker]).await;
    let sender = connect::<Full<Bytes>>(&gateway).await;
    let reset_at_once = || {
        let mut sender = sender.clone();
        async move {
            let request = Request::post("http://g/generate")
                .header("content-type", "application/json")
                .body(Full::from("{}"))
                .unwrap();
            sender.ready().await?;
            // Polled once, the request is on its way; dropped, it is reset.
            let sent = sender.send_request(request);
            tokio::select! {
                biased;
                reply = sent => reply.map(|_| ()),
                () = tokio::task::yield_now() => Ok(()),
            }
        }
    };
    let mut refused = false;
    for _ in 0..20_000 {
        let resets = (0..50).map(|_| reset_at_once());
        let outcomes = join_all(resets).await;
        refused = outcomes.iter().any(Result::is_err);
        if refused {
            break;
        }
    }
    assert!(refused, "a million resets harm the client");
    all_lanes_answer(&gateway).await;
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn silent_streams_on_all_lanes_are_kept_alive() {
    let worker = Worker::doing(vec![
        Step::Wait,
        Step::Send(format!("{STREAM_HEAD}9\r\ndata: 1\n\n\r\n0\r\n\r\n").into()),
    ])
    .await;
    let mut options = options(&[&worker]);
    options.sse_keepalive_secs = 1;
    let gateway = start_with(options).await;
    let streams = begin_streams(&gateway, 16).await;
    let comment = ": keep-alive\n\n";
    assert!(streams.iter().all(|(first, _)| first == comment));
    let rests = end_streams(&worker, streams).await;
    assert!(rests.iter().all(|rest| rest.ends_with(b"data: 1\n\n")));
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_connection_finish_on_all_lanes_when_the_gateway_stops() {
    let worker = Worker::doing(two_events()).await;
    let gateway = start(&[&worker]).await;
    let streams = begin_streams(&gateway, 16).await;
    gateway.gateway.drain();
    // Lanes without a connection of their own would end.
    assert!(!gateway.gateway.wait(Duration::from_millis(100)));
    let rests = end_streams(&worker, streams).await;
    assert!(rests.iter().all(|rest| rest == "data: 2\n\n"));
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
}
