//! TLS towards clients.

use bytes::Bytes;
use gateway::Gateway;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{HandshakeKind, version};

use super::client::{ask, connect, connect_by, start_serving};
use super::pki::{Authority, Secret};
use crate::support::{Client, Step, Worker, chat_stream, generate, ok, options, raw};

#[tokio::test]
async fn both_versions_of_tls_carry_requests_and_several_on_one_connection() {
    let worker = Worker::doing(ok()).await;
    let authority = Authority::new();
    let secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let gateway = start_serving(secret.serving(options(&[&worker])), &authority).await;
    for version in [&version::TLS12, &version::TLS13] {
        let config = authority.client_of(&[version], None);
        let mut client = Client::over(connect(&gateway, config).await.unwrap());
        for _ in 0..3 {
            client.send(&generate("")).await;
            let reply = client.reply().await;
            assert_eq!(
                (reply.status, reply.text().as_str()),
                (200, r#"{"ok":true}"#)
            );
        }
    }
    assert_eq!(worker.received().len(), 6);
}

#[tokio::test]
async fn client_that_prefers_http2_gets_it_and_its_stream() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let worker = Worker::doing(vec![
        Step::Send(head.into()),
        Step::Send("9\r\ndata: 1\n\n\r\n".into()),
        Step::Send("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n".into()),
    ])
    .await;
    let authority = Authority::new();
    let secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let gateway = start_serving(secret.serving(options(&[&worker])), &authority).await;
    let mut config = authority.client(None);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = connect(&gateway, config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://localhost/v1/chat/completions")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(b"{\"stream\":true}")))
        .unwrap();
    let reply = sender.send_request(request).await.unwrap();
    assert_eq!(reply.status(), 200);
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "data: 1\n\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn client_that_speaks_http_is_told_that_the_port_speaks_https() {
    let authority = Authority::new();
    let secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let gateway = start_serving(secret.serving(options(&[])), &authority).await;
    let reply = raw(&gateway, &generate("")).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("https"), "{}", reply.text());
    assert!(reply.whole);
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("smg_"), "metrics are served without TLS");
}

#[tokio::test]
async fn client_without_a_certificate_is_refused_where_one_is_wanted() {
    let worker = Worker::doing(ok()).await;
    let (authority, other) = (Authority::new(), Authority::new());
    let secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let options = gateway::Options {
        tls_client_ca_paths: vec![secret.path("ca.crt")],
        ..secret.serving(options(&[&worker]))
    };
    let gateway = Gateway::start(&options).unwrap();
    let known = authority.client(Some(&authority.issue(&["me"])));
    let foreign = authority.client(Some(&other.issue(&["me"])));
    let health = b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n";
    assert_eq!(
        ask(gateway.addr(), known, health).await.unwrap().status,
        200
    );
    for config in [authority.client(None), foreign] {
        for version in [&version::TLS12, &version::TLS13] {
            let mut config = config.clone();
            if *version == version::TLS12 {
                config = authority.client_of(&[version], None);
            }
            assert!(ask(gateway.addr(), config, health).await.is_none());
        }
    }
}

#[tokio::test]
async fn second_connection_resumes_the_session_of_the_first() {
    let authority = Authority::new();
    let secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let gateway = start_serving(secret.serving(options(&[])), &authority).await;
    for version in [&version::TLS12, &version::TLS13] {
        let config = std::sync::Arc::new(authority.client_of(&[version], None));
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let stream = connect_by(&gateway, &config).await.unwrap();
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            let mut client = Client::over(stream);
            client
                .send(b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n")
                .await;
            assert_eq!(client.reply().await.status, 200);
        }
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
    }
}

#[tokio::test]
async fn handshakes_that_stay_silent_hold_up_no_other_client() {
    let authority = Authority::new();
    let secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let gateway = start_serving(secret.serving(options(&[])), &authority).await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        let stream = tokio::net::TcpStream::connect(gateway.gateway.addr());
        silent.push(stream.await.unwrap());
    }
    let health = b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n";
    for _ in 0..4 {
        let reply = ask(&gateway, authority.client(None), health).await;
        assert_eq!(reply.unwrap().status, 200);
    }
}

#[tokio::test]
async fn drain_ends_streams_in_order_over_tls() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let worker = Worker::doing(vec![
        Step::Send(head.into()),
        Step::Send("9\r\ndata: 1\n\n\r\n".into()),
        Step::Wait,
        Step::Send("9\r\ndata: 2\n\n\r\n0\r\n\r\n".into()),
    ])
    .await;
    let authority = Authority::new();
    let secret = Secret::of(&authority.issue(&["localhost"]), &authority);
    let gateway = start_serving(secret.serving(options(&[&worker])), &authority).await;
    let mut client = Client::over(connect(&gateway, authority.client(None)).await.unwrap());
    client.send(&chat_stream()).await;
    let mut reply = client.head().await.unwrap().unwrap();
    gateway.gateway.drain();
    worker.go_on();
    client.body(&mut reply).await.unwrap();
    assert!(
        reply.whole && reply.text() == "data: 1\n\ndata: 2\n\n",
        "{reply:?}"
    );
    assert!(client.closed().await);
    assert!(gateway.gateway.wait(std::time::Duration::from_secs(10)));
}

#[test]
fn every_bad_file_stops_the_start_with_its_name_and_the_reason() {
    let authority = Authority::new();
    let pair = authority.issue(&["localhost"]);
    let other = authority.issue(&["localhost"]);
    let ca = authority.pem();
    let cases = [
        (vec![("tls.crt", "")], ["tls.crt", "no certificate in PEM"]),
        (
            vec![("tls.key", "hello")],
            ["tls.key", "no private key in PEM"],
        ),
        (
            vec![("tls.key", &other.key)],
            ["tls.key", "is not the key of"],
        ),
        (
            vec![("ca.crt", &pair.key)],
            ["ca.crt", "a private key and no certificate"],
        ),
    ];
    for (changes, parts) in cases {
        let mut files = vec![
            ("tls.crt", &*pair.cert),
            ("tls.key", &pair.key),
            ("ca.crt", &ca),
        ];
        for (name, text) in changes {
            files.iter_mut().find(|file| file.0 == name).unwrap().1 = text;
        }
        let secret = Secret::new(&files);
        let serving = gateway::Options {
            tls_client_ca_paths: vec![secret.path("ca.crt")],
            ..secret.serving(options(&[]))
        };
        for options in [serving, secret.calling(options(&[]))] {
            let error = Gateway::start(&options).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
    let secret = Secret::new(&[]);
    let error = Gateway::start(&secret.serving(options(&[]))).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("'server_cert_path'") && error.contains("cannot be read"),
        "{error}"
    );
}
