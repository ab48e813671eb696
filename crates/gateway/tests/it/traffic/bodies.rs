//! Bodies pass byte for byte, both ways.

use crate::support::{Step, Worker, json, ok, options, post, raw, start, start_with};

#[tokio::test]
async fn a_request_body_arrives_byte_for_byte() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let body = "{ \"z\" : 1.00e+2, \"unknown\":{\"a\":[1,2 ,-0]},\"model\":\"m\" ,\"big\":123456789012345678901234567890,\n\"text\":[\"a\",\"b\"],\"z\":2}";
    assert_eq!(post(&gateway, "/generate", body).await.status, 200);
    assert_eq!(worker.received()[0].body, body.as_bytes());
}

#[tokio::test]
async fn a_response_body_arrives_byte_for_byte() {
    let body = "{\"odd\" : 1e5,\r\n \"text\":\"\\u00e9\"}";
    let worker = Worker::doing(json(200, body)).await;
    let gateway = start(&[&worker]).await;
    let reply = post(&gateway, "/v1/chat/completions", "{}").await;
    assert_eq!(reply.text(), body);
    assert_eq!(reply.header("content-length"), body.len().to_string());
}

#[tokio::test]
async fn bodies_that_sglang_accepts_are_accepted() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    for (path, body) in [
        (
            "/generate",
            r#"{"text":["a","b"],"sampling_params":[{},{}]}"#,
        ),
        (
            "/generate",
            r#"{"input_ids":[[1,2],[3]],"return_logprob":[true,false],"rid":["a","b"]}"#,
        ),
        ("/generate", r#"{"bootstrap_room":9223372036854775807}"#),
        ("/v1/completions", r#"{"prompt":[1,2,3],"model":"any"}"#),
        ("/v1/completions", r#"{"prompt":[[1],[2]],"model":null}"#),
        ("/v1/embeddings", r#"{"input":"x","model":"m"}"#),
        ("/v1/classify", r#"{"input":["x"]}"#),
        ("/v1/responses", r#"{"input":"x"}"#),
        ("/v1/messages", r#"{"messages":[],"max_tokens":1}"#),
    ] {
        let reply = post(&gateway, path, body).await;
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text());
        assert_eq!(worker.received().last().unwrap().path(), path);
    }
}

#[tokio::test]
async fn a_chunked_request_body_arrives_whole() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let request = b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n\
        transfer-encoding: chunked\r\n\r\n6\r\n{\"a\":1\r\n1\r\n}\r\n0\r\n\r\n";
    assert_eq!(raw(&gateway, request).await.status, 200);
    let received = &worker.received()[0];
    assert_eq!(received.body, b"{\"a\":1}");
    assert_eq!(received.all("content-length"), ["7"]);
    assert!(received.all("transfer-encoding").is_empty());
}

#[tokio::test]
async fn a_large_body_arrives_whole() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(8 * 1024 * 1024));
    assert_eq!(post(&gateway, "/generate", &body).await.status, 200);
    assert_eq!(worker.received()[0].body, body.as_bytes());
}

#[tokio::test]
async fn the_query_and_a_path_prefix_survive() {
    let worker = Worker::listening(0, |_| ok()).await;
    let mut options = options(&[]);
    options.worker_urls = vec![format!("{}/v2/", worker.url())];
    options.health_check_endpoint = "/alive".into();
    let gateway = start_with(options).await;
    post(&gateway, "/generate?a=1&b=%20", "{}").await;
    let paths: Vec<_> = worker
        .received()
        .iter()
        .map(|r| r.path().to_owned())
        .collect();
    assert!(paths.contains(&"/v2/alive".to_owned()), "{paths:?}");
    assert_eq!(paths.last().unwrap(), "/v2/generate?a=1&b=%20");
}

#[tokio::test]
async fn rerank_replies_are_wrapped_on_both_spellings() {
    let answer =
        r#"[{"score":0.9,"document":"b","index":1},{"score":0.1,"document":"a","index":0}]"#;
    let worker = Worker::doing(json(200, answer)).await;
    let gateway = start(&[&worker]).await;
    for path in ["/rerank", "/v1/rerank"] {
        let body = r#"{"query":"q","documents":["a","b"],"top_k":1,"model":"m"}"#;
        let reply = post(&gateway, path, body).await;
        let json = reply.json();
        assert_eq!(json["object"], "rerank");
        assert_eq!(json["results"].as_array().unwrap().len(), 1);
        let received = worker.received().last().cloned().unwrap();
        assert_eq!(
            (received.path(), &received.body[..]),
            ("/v1/rerank", body.as_bytes())
        );
    }
}

#[tokio::test]
async fn a_worker_error_passes_as_it_is() {
    let error = r#"{"object":"error","message":"too long","code":400}"#;
    let worker = Worker::doing(json(400, error)).await;
    let gateway = start(&[&worker]).await;
    for path in ["/generate", "/v1/chat/completions", "/rerank"] {
        let reply = post(&gateway, path, r#"{"stream":true}"#).await;
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (400, error),
            "{path}"
        );
        assert_eq!(reply.header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn a_body_without_framing_ends_with_the_connection() {
    let reply = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it".to_vec();
    let worker = Worker::doing(vec![Step::Send(reply), Step::Close]).await;
    let gateway = start(&[&worker]).await;
    let reply = post(&gateway, "/generate", "{}").await;
    assert!(reply.whole);
    assert_eq!(reply.text(), "all of it");
}
