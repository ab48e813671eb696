//! Connections that are switched to WebSocket: bytes pass both ways, and each end hears of the
//! other's end.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json as value;
use tokio::net::TcpStream;

use crate::support::{
    Client, Received, Reply, Running, Step, Worker, add, bare, get, json, options, raw, start,
    start_with, until, until_gone, until_status,
};

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-accept: accepted\r\n\r\n";

fn send(text: &str) -> Step {
    Step::Send(text.into())
}

/// The request that opens a connection, with further header lines.
fn opening(query: &str, lines: &str) -> Vec<u8> {
    format!(
        "GET /v1/realtime{query} HTTP/1.1\r\nhost: g\r\nconnection: keep-alive, Upgrade\r\n\
         upgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: k\r\n{lines}\r\n"
    )
    .into_bytes()
}

/// A client whose connection has been switched.
async fn connected(gateway: &Running) -> Client {
    let mut client = Client::to(gateway).await;
    client.send(&opening("", "")).await;
    assert_eq!(head(&mut client).await.status, 101);
    client
}

async fn head(client: &mut Client) -> Reply {
    client.head().await.unwrap().unwrap()
}

/// What a worker that agrees does: `first` comes with the head, then it echoes "frames" that end
/// with an empty line.
fn echoing(request: &Received, first: &str) -> Vec<Step> {
    if request.path().starts_with("/v1/realtime") {
        return vec![send(&format!("{SWITCHED}{first}"))];
    }
    vec![send(&format!("echo of {}", request.head))]
}

/// A worker that agrees and then keeps silent.
async fn silent() -> Worker {
    Worker::doing(vec![send(SWITCHED), Step::Hang]).await
}

async fn until_idle(gateway: &Running) {
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn bytes_pass_both_ways_after_the_switch_and_the_worker_is_busy_meanwhile() {
    let worker = Worker::scripted(|request| echoing(request, "hello;")).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    // The first frame may come with the request's head.
    let mut request = opening("?model=m&x=%2F", "x-mine: 1\r\nx-request-id: r-1\r\n");
    request.extend_from_slice(b"early\r\n\r\n");
    client.send(&request).await;
    let reply = head(&mut client).await;
    assert_eq!(reply.status, 101);
    assert_eq!(reply.all("upgrade"), ["websocket"]);
    assert_eq!(reply.all("connection"), ["Upgrade"]);
    assert_eq!(reply.header("sec-websocket-accept"), "accepted");
    assert_eq!(reply.header("x-request-id"), "r-1");
    client.read_until("hello;echo of early\r\n\r\n").await;
    client.send(b"late \x00\xff\r\n\r\n").await;
    client.read_until("echo of late \x00").await;
    let received = worker.received().remove(0);
    assert_eq!(received.path(), "/v1/realtime?model=m&x=%2F");
    assert_eq!(received.all("connection"), ["Upgrade"]);
    assert_eq!(received.all("upgrade"), ["websocket"]);
    assert_eq!(received.all("sec-websocket-key"), ["k"]);
    assert_eq!(received.all("x-mine"), ["1"]);
    assert_eq!(received.all("via").len(), 1);
    assert_eq!(gateway.in_flight().await, 1);
    drop(client);
    until_idle(&gateway).await;
    let ended =
        r#"smg_http_responses_total{error_code="",path="/v1/realtime",status_code="101"} 1"#;
    // The reply is counted once both connections are closed.
    until(|| async { gateway.metrics().await.contains(ended) }).await;
    let metrics = gateway.metrics().await;
    for line in [
        r#"smg_http_requests_total{method="GET",path="/v1/realtime"} 1"#,
        r#"endpoint="realtime""#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn worker_gets_its_own_key_and_not_the_gateways() {
    let worker = silent().await;
    let mut options = options(&[]);
    options.api_key = Some("ours".to_owned().into());
    let gateway = start_with(options).await;
    let key = "authorization: Bearer ours\r\n";
    let body = value!({"url": worker.url(), "api_key": "theirs"}).to_string();
    let length = body.len();
    let line = format!(
        "POST /workers HTTP/1.1\r\nhost: g\r\n{key}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    assert_eq!(raw(&gateway, line.as_bytes()).await.status, 202);
    gateway.has_ready(1).await;
    assert_eq!(raw(&gateway, &opening("", "")).await.status, 401);
    let mut client = Client::to(&gateway).await;
    client.send(&opening("", key)).await;
    assert_eq!(head(&mut client).await.status, 101);
    let received = worker.received().remove(0);
    assert_eq!(received.all("authorization"), ["Bearer theirs"]);
}

#[tokio::test]
async fn client_that_leaves_ends_the_connection_to_the_worker() {
    let worker = silent().await;
    let gateway = start(&[&worker]).await;
    let client = connected(&gateway).await;
    until(|| async { gateway.in_flight().await == 1 }).await;
    drop(client);
    until(|| async { worker.disconnects() == 1 }).await;
    until_idle(&gateway).await;
}

#[tokio::test]
async fn worker_that_leaves_ends_the_clients_connection_after_its_last_bytes() {
    let steps = vec![send(SWITCHED), send("last words"), Step::Close];
    let worker = Worker::doing(steps).await;
    let gateway = start(&[&worker]).await;
    let mut client = connected(&gateway).await;
    // Unread bytes of the client's must not turn the end into a reset.
    client.send(&[b'x'; 4096]).await;
    client.read_until("last words").await;
    assert!(client.closed().await);
    until_idle(&gateway).await;
}

#[tokio::test]
async fn reset_of_a_worker_counts_as_a_reply_that_broke_off() {
    let steps = vec![send(SWITCHED), Step::Wait, Step::Reset];
    let worker = Worker::doing(steps).await;
    let gateway = start(&[&worker]).await;
    let mut client = connected(&gateway).await;
    worker.go_on();
    assert!(client.closed().await);
    until_idle(&gateway).await;
    let line = r#"smg_http_responses_total{error_code="stream_error",path="/v1/realtime",status_code="101"} 1"#;
    until(|| async { gateway.metrics().await.contains(line) }).await;
}

#[tokio::test]
async fn refusal_is_relayed_as_it_is() {
    let worker = Worker::doing(json(400, r#"{"why":"no such model"}"#)).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    for _ in 0..2 {
        // The connection stays one of HTTP.
        client.send(&opening("", "")).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 400);
        assert_eq!(reply.text(), r#"{"why":"no such model"}"#);
        assert_eq!(reply.header("upgrade"), "");
    }
    until_idle(&gateway).await;
}

#[tokio::test]
async fn unreachable_worker_is_passed_over() {
    let (dead, alive) = (silent().await, silent().await);
    let gateway = start(&[&dead, &alive]).await;
    dead.kill().await;
    let _clients = [connected(&gateway).await, connected(&gateway).await];
    assert_eq!(alive.received().len(), 2);
}

#[tokio::test]
async fn model_in_the_query_chooses_the_workers() {
    async fn serving(model: &'static str) -> Worker {
        Worker::listening(0, move |request| match request.path() {
            "/server_info" => json(200, &format!(r#"{{"served_model_name":"{model}"}}"#)),
            "/v1/realtime?model=org%2Fb" => vec![send(SWITCHED), Step::Hang],
            _ => json(200, "{}"),
        })
        .await
    }
    let (other, wanted) = (serving("a").await, serving("org/b").await);
    let gateway = start_with(options(&[])).await;
    for worker in [&other, &wanted] {
        let id = add(&gateway, &value!({"url": worker.url()})).await;
        until_status(&gateway, &id, "ready").await;
    }
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::to(&gateway).await;
        client.send(&opening("?model=org%2Fb", "")).await;
        assert_eq!(head(&mut client).await.status, 101);
        clients.push(client);
    }
    let opened = |worker: &Worker| {
        let received = worker.received().into_iter();
        received
            .filter(|it| it.path().starts_with("/v1/realtime"))
            .count()
    };
    assert_eq!((opened(&other), opened(&wanted)), (0, 4));
}

#[tokio::test]
async fn request_without_an_upgrade_is_426_and_one_over_http2_is_501() {
    let worker = silent().await;
    let gateway = start(&[&worker]).await;
    let opening = String::from_utf8(opening("", "")).unwrap();
    for request in [
        "GET /v1/realtime HTTP/1.1\r\nhost: g\r\n\r\n",
        &opening.replace("WebSocket", "h2c"),
        &opening.replace("keep-alive, Upgrade", "keep-alive"),
        &opening.replace("host: g", "host: g\r\ncontent-length: 2"),
    ] {
        let reply = raw(&gateway, format!("{request}{{}}").as_bytes()).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (426, "upgrade_required"),
            "{request}"
        );
        assert_eq!(reply.header("upgrade"), "websocket");
        assert_eq!(reply.header("connection"), "Upgrade");
    }
    let stream = TcpStream::connect(gateway.gateway.addr()).await.unwrap();
    let (mut sender, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://g/v1/realtime").body(Empty::new());
    let reply = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(reply.status(), 501);
    assert!(worker.received().is_empty());
}

#[tokio::test]
async fn open_connection_holds_its_share_of_the_limit() {
    let worker = silent().await;
    let mut options = options(&[&worker]);
    options.max_concurrent_requests = 1;
    options.queue_size = 0;
    let gateway = start_with(options).await;
    let client = connected(&gateway).await;
    let refused = raw(&gateway, &opening("", "")).await;
    assert_eq!(refused.status, 429);
    drop(client);
    until_idle(&gateway).await;
    connected(&gateway).await;
}

#[tokio::test]
async fn worker_that_stays_silent_is_given_up_like_one_amid_a_stream() {
    let worker = silent().await;
    let mut options = options(&[&worker]);
    options.request_timeout_secs = 1;
    let gateway = start_with(options).await;
    let mut client = connected(&gateway).await;
    assert!(client.closed().await);
    until(|| async { worker.disconnects() == 1 }).await;
    until_idle(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_waits_for_an_open_connection_and_ends_it_with_the_grace_period() {
    let worker = silent().await;
    let mut options = options(&[&worker]);
    options.shutdown_grace_period_secs = 1;
    let gateway = start_with(options).await;
    let mut client = connected(&gateway).await;
    gateway.gateway.drain();
    assert!(!gateway.gateway.wait(Duration::from_millis(200)));
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
    assert!(client.closed().await);
    until(|| async { worker.disconnects() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_with_the_last_connection() {
    let worker = Worker::scripted(|request| echoing(request, "")).await;
    let gateway = start(&[&worker]).await;
    let mut client = connected(&gateway).await;
    gateway.gateway.drain();
    client.send(b"still here\r\n\r\n").await;
    client.read_until("echo of still here").await;
    assert!(!gateway.gateway.wait(Duration::from_millis(50)));
    drop(client);
    assert!(gateway.gateway.wait(Duration::from_secs(5)));
}

#[tokio::test]
async fn removed_worker_loses_its_connections_when_its_drain_ends() {
    let worker = silent().await;
    let mut options = options(&[]);
    options.worker_drain_timeout_secs = 1;
    let gateway = start_with(options).await;
    let id = add(&gateway, &value!({"url": worker.url()})).await;
    until_status(&gateway, &id, "ready").await;
    let mut client = connected(&gateway).await;
    let path = format!("/workers/{id}");
    assert_eq!(bare(&gateway, &format!("DELETE {path}")).await.status, 202);
    assert_eq!(get(&gateway, &path).await.status, 200, "it drains");
    until_gone(&gateway, &id).await;
    assert!(client.closed().await);
    until(|| async { worker.disconnects() == 1 }).await;
}
