//! Headers: what is forwarded, what is replaced, what is added.

use crate::support::{
    Received, Step, Worker, generate, get, ok, options, post, raw, start, start_with,
};

async fn forwarded(lines: &str) -> Received {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: public.example\r\ncontent-type: application/json\r\n{lines}content-length: 2\r\n\r\n{{}}"
    );
    assert_eq!(raw(&gateway, request.as_bytes()).await.status, 200);
    worker.received().remove(0)
}

#[tokio::test]
async fn everything_but_hop_by_hop_headers_is_forwarded() {
    let received = forwarded(
        "x-custom: 1\r\nx-custom: 2\r\ncookie: c\r\nuser-agent: ua\r\naccept: a\r\nauthorization: Bearer mine\r\n\
         connection: keep-alive, x-private\r\nx-private: 1\r\nkeep-alive: timeout=5\r\nte: trailers\r\n\
         x-smg-routing-key: k\r\ntraceparent: t\r\nproxy-authorization: p\r\n",
    )
    .await;
    assert_eq!(received.all("x-custom"), ["1", "2"]);
    for (name, value) in [
        ("cookie", "c"),
        ("user-agent", "ua"),
        ("accept", "a"),
        ("authorization", "Bearer mine"),
        ("x-smg-routing-key", "k"),
        ("traceparent", "t"),
        ("content-type", "application/json"),
        ("content-length", "2"),
    ] {
        assert_eq!(received.all(name), [value], "{name}");
    }
    for name in [
        "connection",
        "x-private",
        "keep-alive",
        "te",
        "proxy-authorization",
    ] {
        assert!(received.all(name).is_empty(), "{name}");
    }
    assert_eq!(received.all("host").len(), 1);
    assert!(received.all("host")[0].starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn the_clients_request_id_goes_to_the_worker_and_back() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let reply = raw(&gateway, &generate("x-correlation-id: mine\r\n")).await;
    assert_eq!(reply.all("x-request-id"), ["mine"]);
    let received = worker.received().remove(0);
    assert_eq!(received.all("x-request-id"), ["mine"]);
    assert_eq!(received.all("x-correlation-id"), ["mine"]);
}

#[tokio::test]
async fn a_fresh_request_id_goes_to_the_worker_too() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let reply = post(&gateway, "/v1/chat/completions", "{}").await;
    let id = reply.header("x-request-id");
    assert!(id.starts_with("chatcmpl-"), "{id}");
    assert_eq!(worker.received()[0].all("x-request-id"), [id]);
}

#[tokio::test]
async fn response_headers_survive_even_when_repeated() {
    let head = "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nx-worker: w\r\nserver: uvicorn\r\n\
        content-encoding: identity\r\nkeep-alive: timeout=5\r\ncontent-length: 2\r\nx-request-id: theirs\r\n\r\n{}";
    let worker = Worker::doing(vec![Step::Send(head.into())]).await;
    let gateway = start(&[&worker]).await;
    let reply = post(&gateway, "/generate", "{}").await;
    assert_eq!(reply.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(
        (reply.header("x-worker"), reply.header("server")),
        ("w", "uvicorn")
    );
    assert_eq!(reply.header("content-encoding"), "identity");
    assert!(reply.all("keep-alive").is_empty());
    assert_ne!(reply.header("x-request-id"), "theirs");
}

#[tokio::test]
async fn the_gateways_key_opens_and_the_workers_key_replaces_it() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.api_key = Some("s3cret".to_owned().into());
    let gateway = start_with(options).await;
    for wrong in [
        "",
        "authorization: Bearer nope\r\n",
        "authorization: s3cret\r\n",
    ] {
        let reply = raw(&gateway, &generate(wrong)).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (401, "invalid_api_key")
        );
        assert!(reply.header("www-authenticate").starts_with("Bearer"));
    }
    assert!(worker.received().is_empty());
    assert_eq!(
        raw(&gateway, &generate("authorization: Bearer s3cret\r\n"))
            .await
            .status,
        200
    );
    assert_eq!(worker.received()[0].all("authorization"), ["Bearer s3cret"]);
    assert_eq!(get(&gateway, "/workers").await.status, 401);
    for public in [
        "/health",
        "/liveness",
        "/readiness",
        "/v1/models",
        "/get_server_info",
    ] {
        assert_eq!(get(&gateway, public).await.status, 200, "{public}");
    }
}

#[tokio::test]
async fn browsers_may_read_replies() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let request = b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: g\r\norigin: https://ui\r\n\
        access-control-request-method: POST\r\n\r\n";
    let preflight = raw(&gateway, request).await;
    assert_eq!(preflight.status, 200);
    assert_eq!(preflight.header("access-control-max-age"), "3600");
    let request = b"GET /health HTTP/1.1\r\nhost: g\r\norigin: https://ui\r\n\r\n";
    assert_eq!(
        raw(&gateway, request)
            .await
            .header("access-control-allow-origin"),
        "*"
    );
    assert!(
        get(&gateway, "/health")
            .await
            .all("access-control-allow-origin")
            .is_empty()
    );
}

#[tokio::test]
async fn a_worker_cannot_open_replies_to_other_origins() {
    let head = "HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\ncontent-length: 2\r\n\r\n{}";
    let worker = Worker::doing(vec![Step::Send(head.into())]).await;
    let mut options = options(&[&worker]);
    options.cors_allowed_origins = vec!["https://ui".into()];
    let gateway = start_with(options).await;
    for (origin, allowed) in [("https://evil", ""), ("https://ui", "https://ui")] {
        let request = format!(
            "POST /generate HTTP/1.1\r\nhost: g\r\norigin: {origin}\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        let reply = raw(&gateway, request.as_bytes()).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("access-control-allow-origin"), allowed);
    }
}

#[tokio::test]
async fn pages_of_listed_origins_may_read_all_that_the_gateway_writes() {
    let (worker, other) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let mut options = options(&[&worker, &other]);
    options.cors_allowed_origins = vec!["https://ui".into()];
    options.policy = routing::PolicyKind::CacheAware;
    let gateway = start_with(options).await;
    let request = generate("origin: https://ui\r\nx-smg-explain: 1\r\n");
    let reply = raw(&gateway, &request).await;
    assert_eq!(reply.header("access-control-allow-credentials"), "true");
    let exposed = reply.header("access-control-expose-headers").split(',');
    let exposed: Vec<_> = exposed.map(str::trim).collect();
    let written = reply.headers.iter().map(|(name, _)| name.as_str());
    let written: Vec<_> = written.filter(|name| name.starts_with("x-")).collect();
    assert!(written.len() >= 8, "{written:?}");
    for name in written
        .into_iter()
        .chain(["retry-after", "x-smg-error-code"])
    {
        assert!(exposed.contains(&name), "{name} is not in {exposed:?}");
    }
}
