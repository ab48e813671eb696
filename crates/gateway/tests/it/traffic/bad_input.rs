//! Bad input gets a clear answer and harms no other request.

use crate::support::{
    Client, Worker, generate, get, ok, options, post, posting, raw, start, start_with,
};

#[tokio::test]
async fn malformed_json_is_refused_in_the_envelope() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    for path in [
        "/generate",
        "/v1/chat/completions",
        "/v1/completions",
        "/rerank",
    ] {
        for body in ["", "{\"a\":", "[1]", "{'a':1}"] {
            let reply = post(&gateway, path, body).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (400, "json_parse_error"),
                "{path} {body}"
            );
        }
    }
    assert!(worker.received().is_empty());
}

#[tokio::test]
async fn an_undeclared_body_is_refused_as_upstream_does() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let with = |path: &str, line: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: g\r\n{line}content-length: 2\r\n\r\n{{}}")
    };
    let form = "content-type: application/x-www-form-urlencoded\r\n";
    for (path, line, status) in [
        ("/v1/chat/completions", "", 400),
        ("/v1/chat/completions", form, 400),
        ("/v1/embeddings", "", 415),
        ("/v1/completions", form, 415),
        ("/generate", form, 415),
        ("/generate", "", 200),
    ] {
        let reply = raw(&gateway, with(path, line).as_bytes()).await;
        assert_eq!(reply.status, status, "{path} {line}");
        if status != 200 {
            reply.code();
        }
    }
}

#[tokio::test]
async fn too_large_a_body_is_refused_before_it_is_read() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.max_payload_size = 1000;
    let gateway = start_with(options).await;
    let mut client = Client::to(&gateway).await;
    client.send(b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: 1001\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (413, "payload_too_large")
    );

    let exact = format!(r#"{{"a":"{}"}}"#, "x".repeat(1000 - 8));
    assert_eq!(post(&gateway, "/generate", &exact).await.status, 200);
}

#[tokio::test]
async fn a_client_that_goes_on_sending_still_reads_its_413() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.max_payload_size = 1000;
    let gateway = start_with(options).await;
    let body = "x".repeat(4 * 1024 * 1024);
    let reply = post(&gateway, "/v1/chat/completions", &body).await;
    assert_eq!(reply.status, 413);
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_refused() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.max_payload_size = 1000;
    let gateway = start_with(options).await;
    let mut request = b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        request.extend_from_slice(format!("64\r\n{}\r\n", "x".repeat(100)).as_bytes());
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let reply = raw(&gateway, &request).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (413, "payload_too_large")
    );
    assert!(worker.received().is_empty());
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_get_the_list_of_what_is_allowed() {
    let gateway = start(&[]).await;
    let reply = get(&gateway, "/v1/chat/completion").await;
    assert_eq!((reply.status, reply.code().as_str()), (404, "unknown_url"));
    assert!(reply.text().contains("/v1/chat/completion"));
    let reply = get(&gateway, "/generate").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (405, "method_not_allowed")
    );
    assert_eq!(reply.header("allow"), "POST, PUT");
    let reply = post(&gateway, "/v1/models", "{}").await;
    assert_eq!((reply.status, reply.header("allow")), (405, "GET, HEAD"));
    assert!(!reply.header("x-request-id").is_empty());
}

#[tokio::test]
async fn head_is_answered_where_get_is() {
    let gateway = start(&[]).await;
    let mut client = Client::to(&gateway).await;
    client
        .send(b"HEAD /health HTTP/1.1\r\nhost: g\r\n\r\n")
        .await;
    let head = client.read_until("\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn no_worker_means_503_and_when_to_come_back() {
    let gateway = start(&[]).await;
    let reply = post(&gateway, "/generate", "{}").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "no_available_workers")
    );
    assert!(!reply.header("retry-after").is_empty());
    let reply = get(&gateway, "/get_model_info").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "no_workers"));
}

#[tokio::test]
async fn garbage_on_one_connection_does_not_disturb_another() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let huge = format!(
        "GET /health HTTP/1.1\r\nhost: g\r\nx: {}\r\n\r\n",
        "a".repeat(600 * 1024)
    );
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
        b"GET /health HTTP/9.9\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-length: abc\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        huge.as_bytes(),
    ] {
        let mut client = Client::to(&gateway).await;
        client.send(garbage).await;
        client.send(b"\r\n\r\n").await;
        while !client.closed().await {}
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_up_to_the_garbage() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    let others = b"GET /health HTTP/1.1\r\nhost: g\r\n\r\nnonsense\r\n\r\n";
    client.send(&[&generate("")[..], others].concat()).await;
    assert_eq!(client.reply().await.text(), r#"{"ok":true}"#);
    assert_eq!(client.reply().await.text(), "OK");
    assert_eq!(client.reply().await.status, 400);
}

#[tokio::test]
async fn headers_of_64_kilobytes_pass() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let long = "a".repeat(64 * 1024);
    let request = generate(&format!("x-long: {long}\r\n"));
    assert_eq!(raw(&gateway, &request).await.status, 200);
    assert_eq!(worker.received()[0].all("x-long"), [long]);
}

#[tokio::test]
async fn a_truncated_request_reaches_no_worker() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"a\"").await;
    drop(client);
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    assert_eq!(worker.received().len(), 1);
    assert_eq!(gateway.in_flight().await, 0);
}

#[tokio::test]
async fn compressed_body_is_refused_with_the_encoding_that_may_be_sent() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    for (encoding, status) in [("gzip", 415), ("identity, br", 415), ("Identity", 200)] {
        let line = format!("content-encoding: {encoding}\r\n");
        let reply = raw(&gateway, &posting("/v1/chat/completions", &line, "{}")).await;
        assert_eq!(reply.status, status, "{encoding}");
        let plain = if status == 415 { "identity" } else { "" };
        assert_eq!(reply.header("accept-encoding"), plain, "{encoding}");
    }
}
