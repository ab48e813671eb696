//! Errors of the gateway, in the dialect of the route.

use serde_json::Value;

use crate::support::{Client, Reply, Step, Worker, get, options, post, posting, start, start_with};

async fn refused(path: &str) -> Reply {
    let gateway = start(&[]).await;
    post(&gateway, path, "{broken").await
}

#[tokio::test]
async fn errors_of_each_endpoint_read_as_its_clients_expect() {
    let reply = refused("/v1/messages").await;
    let body = reply.json();
    assert_eq!((reply.status, &body["type"]), (400, &"error".into()));
    assert_eq!(body["error"]["type"], "invalid_request_error");
    assert!(body["error"]["message"].is_string(), "{body}");
    assert_eq!(body["request_id"], reply.header("x-request-id"));
    assert_eq!(reply.header("x-smg-error-code"), "json_parse_error");

    let reply = refused("/generate").await;
    let body = reply.json();
    assert_eq!(
        (&body["object"], &body["code"]),
        (&"error".into(), &400.into())
    );
    assert_eq!(body["message"], body["error"]["message"]);
    assert_eq!(reply.code(), "json_parse_error");

    let reply = refused("/v1/chat/completions").await;
    assert_eq!(reply.json().as_object().unwrap().len(), 1);
    assert_eq!(reply.code(), "json_parse_error");
}

#[tokio::test]
async fn missing_keys_methods_and_paths_read_so_too() {
    let mut options = options(&[]);
    options.api_key = Some("k".to_owned().into());
    let gateway = start_with(options).await;
    let no_key = post(&gateway, "/v1/messages", "{}").await;
    assert_eq!(no_key.status, 401);
    assert_eq!(no_key.json()["error"]["type"], "authentication_error");
    let wrong_method = get(&gateway, "/v1/messages").await;
    assert_eq!(wrong_method.status, 405);
    assert_eq!(wrong_method.json()["type"], "error");
    let below = get(&gateway, "/v1/messages/batches/7").await;
    assert_eq!(below.status, 404);
    assert_eq!(below.json()["error"]["type"], "not_found_error");
    let nowhere = get(&gateway, "/nowhere").await;
    assert_eq!(
        (nowhere.status, nowhere.code().as_str()),
        (404, "unknown_url")
    );
}

/// The last event of a stream of which a worker sends this much.
async fn last_event(path: &str, sent: &str) -> String {
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{sent}\r\n",
        sent.len()
    );
    let worker = Worker::doing(vec![Step::Send(text.into()), Step::Close]).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&posting(path, "", r#"{"stream":true}"#)).await;
    let reply = client.reply().await;
    assert!(!reply.whole);
    assert!(reply.text().starts_with(sent), "{:?}", reply.text());
    reply.text().split_off(sent.len())
}

#[tokio::test]
async fn stream_of_messages_that_breaks_off_ends_with_an_event_named_error() {
    let event = last_event("/v1/messages", "event: ping\ndata: {\"type\":\"ping\"}\n\n").await;
    let data = event.strip_prefix("event: error\ndata: ").unwrap();
    let data: Value = serde_json::from_str(data.trim_end()).unwrap();
    assert_eq!(data["type"], "error");
    assert_eq!(data["error"]["type"], "api_error");
    assert_eq!(data["error"]["code"], "stream_error");
}

#[tokio::test]
async fn last_event_follows_comments_and_every_kind_of_empty_line() {
    for sent in [
        "data: 1\n\n: comment\n",
        "data: 1\r\r\n",
        "data: 1\r\n\r",
        "\u{feff}data: 1\r\n\n",
    ] {
        let event = last_event("/generate", sent).await;
        assert!(
            event.starts_with("data: {\"error\":"),
            "{sent:?}: {event:?}"
        );
    }
    for sent in [
        "data: 1\n\ndata: 2\n",
        "data: 1\n\n: comment",
        "data: 1\n: x\n",
    ] {
        assert_eq!(last_event("/generate", sent).await, "", "{sent:?}");
    }
}
