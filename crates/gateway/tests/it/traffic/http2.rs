//! Clients that speak HTTP/2 with prior knowledge.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::{Running, Step, Worker, get, ok, options, start, start_with, until};

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
            let sent =
                tokio::time::timeout(Duration::from_millis(50), sender.send_request(request)).await;
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
    until(|| async { gateway.in_flight().await == 0 }).await;
    let reply = sender.send_request(request("{}")).await.unwrap();
    assert_eq!(reply.status(), 200);
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
    for (status, body) in futures_util::future::join_all(requests).await {
        assert_eq!((status.as_u16(), body.is_empty()), (200, false));
    }
    assert_eq!(gateway.in_flight().await, 0);
}
