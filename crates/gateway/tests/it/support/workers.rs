//! Workers registered, shown and removed over HTTP.

use serde_json::Value;

use super::{Reply, Running, get, raw, until};

/// A request with a JSON body, on a connection of its own.
pub(crate) async fn send(gateway: &Running, line: &str, body: &Value) -> Reply {
    let body = body.to_string();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    raw(gateway, (head + &body).as_bytes()).await
}

/// A request without a body, on a connection of its own.
pub(crate) async fn bare(gateway: &Running, line: &str) -> Reply {
    let head = format!("{line} HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n");
    raw(gateway, head.as_bytes()).await
}

/// Registers a worker; returns its id.
pub(crate) async fn add(gateway: &Running, spec: &Value) -> String {
    let reply = send(gateway, "POST /workers", spec).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    reply.json()["worker_id"].as_str().unwrap().to_owned()
}

/// A worker as `GET /workers/{id}` shows it.
pub(crate) async fn shown(gateway: &Running, id: &str) -> Value {
    get(gateway, &format!("/workers/{id}")).await.json()
}

/// Waits until a worker has a status.
pub(crate) async fn until_status(gateway: &Running, id: &str, status: &str) {
    until(|| async { shown(gateway, id).await["status"] == status }).await;
}

/// Waits until a worker is removed.
pub(crate) async fn until_gone(gateway: &Running, id: &str) {
    let path = format!("/workers/{id}");
    until(|| async { get(gateway, &path).await.status == 404 }).await;
}
