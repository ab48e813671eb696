//! What is recorded of calls of the control plane.

use std::fs;
use std::path::Path;

use gateway::{Gateway, Options};
use serde_json::Value;

use super::support::{TempDir, bearer, with_audit, with_control_keys};
use crate::support::{Client, options, posting, raw, start_with, until};

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|it| it.ends_with('\n'));
    whole
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn recorded(path: &Path, count: usize) -> Vec<Value> {
    until(|| async { lines(path).len() >= count }).await;
    lines(path)
}

/// Principal, method, role, request, outcome; status.
const RECORDED: [(&str, u16); 4] = [
    ("ops api_key admin POST /workers success", 400),
    ("eye api_key user POST /flush_cache denied", 403),
    ("unauthenticated none user POST /workers denied", 401),
    ("eye api_key user GET /workers success", 200),
];

#[tokio::test]
async fn every_call_of_the_control_plane_is_recorded_with_its_principal_and_outcome() {
    let dir = TempDir::new("recorded");
    let path = dir.path("audit.jsonl");
    let gateway = start_with(with_audit(&path)).await;
    let id = "x-request-id: req-7\r\n";
    for (key, path, query, status) in [
        ("boss", "/workers", "?key=s3cret", 400),
        ("guest", "/flush_cache", "", 403),
        ("s3cret", "/workers", "", 401),
    ] {
        let request = posting(&format!("{path}{query}"), &(bearer(key) + id), "{}");
        assert_eq!(raw(&gateway, &request).await.status, status);
    }
    // Neither inference nor what all may ask.
    for path in ["/generate", "/nowhere"] {
        raw(&gateway, &posting(path, &bearer("boss"), "{}")).await;
    }
    let request = format!(
        "GET /workers HTTP/1.1\r\nhost: g\r\n{}\r\n",
        bearer("guest")
    );
    assert_eq!(raw(&gateway, request.as_bytes()).await.status, 200);
    let found = recorded(&path, 4).await;
    assert_eq!(found.len(), 4, "{found:?}");
    for (line, expected) in found.iter().zip(RECORDED) {
        let fields = [
            "principal",
            "auth_method",
            "role",
            "method",
            "path",
            "outcome",
        ];
        let values = fields.map(|field| line[field].as_str().unwrap());
        assert_eq!(values.join(" "), expected.0);
        assert_eq!(line["status"], expected.1, "{line}");
        assert_eq!(line["message"], "control_plane_audit");
        assert_eq!(line["resource"], line["path"]);
    }
    assert_eq!(found[0]["name"], "Operations");
    assert_eq!(found[0]["request_id"], "req-7");
    assert!(!fs::read_to_string(&path).unwrap().contains("s3cret"));
}

#[tokio::test]
async fn call_whose_client_left_is_recorded_without_a_status() {
    let dir = TempDir::new("left");
    let path = dir.path("audit.jsonl");
    let gateway = start_with(with_audit(&path)).await;
    // The worker never comes up, and the call waits for it.
    let mut client = Client::to(&gateway).await;
    let request = posting("/add_worker?url=http://127.0.0.1:1", &bearer("boss"), "");
    client.send(&request).await;
    let asked = format!("GET /workers HTTP/1.1\r\nhost: g\r\n{}\r\n", bearer("boss"));
    until(|| async { raw(&gateway, asked.as_bytes()).await.json()["total"] == 1 }).await;
    drop(client);
    let is_left = |line: &Value| line["path"] == "/add_worker" && line["status"].is_null();
    until(|| async { lines(&path).iter().any(is_left) }).await;
}

#[tokio::test]
async fn gateways_last_calls_are_written_before_it_has_stopped() {
    let dir = TempDir::new("last");
    let path = dir.path("audit.jsonl");
    let gateway = start_with(with_audit(&path)).await;
    for _ in 0..50 {
        raw(&gateway, &posting("/workers", &bearer("boss"), "{}")).await;
    }
    gateway.gateway.drain();
    until(|| async { gateway.gateway.wait(std::time::Duration::ZERO) }).await;
    assert_eq!(lines(&path).len(), 50);
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let dir = TempDir::new("broken");
    let (inner, path) = (dir.path("logs"), dir.path("logs/audit.jsonl"));
    fs::create_dir(&inner).unwrap();
    let gateway = start_with(with_audit(&path)).await;
    let call = posting("/workers", &bearer("boss"), "{}");
    assert_eq!(raw(&gateway, &call).await.status, 400);
    recorded(&path, 1).await;
    fs::remove_dir_all(&inner).unwrap();
    until(|| async {
        raw(&gateway, &call).await.all("x-smg-error-code") == ["audit_log_unavailable"]
    })
    .await;
    let inference = raw(&gateway, &posting("/generate", "", "{}")).await;
    assert_eq!(inference.code(), "no_available_workers");
    fs::create_dir(&inner).unwrap();
    until(|| async { raw(&gateway, &call).await.status == 400 }).await;
}

#[test]
fn gateway_does_not_start_without_what_its_control_plane_needs() {
    let dir = TempDir::new("start");
    let unwritable = with_audit(&dir.path("no/such/dir/audit.jsonl"));
    let mut empty = with_control_keys();
    empty.control_plane_auth.as_mut().unwrap().api_keys.clear();
    let mut twice = with_control_keys();
    let keys = &mut twice.control_plane_auth.as_mut().unwrap().api_keys;
    keys.extend_from_within(..1);
    let keyless = Options {
        api_keys_file: Some(dir.path("keys.json").to_str().unwrap().to_owned()),
        ..options(&[])
    };
    for (options, named) in [
        (keyless, "api_keys_file"),
        (unwritable, "audit_log"),
        (empty, "control_plane_auth"),
        (twice, "control_plane_api_keys"),
    ] {
        let error = Gateway::start(&options).unwrap_err().to_string();
        assert!(error.contains(named) && !error.contains("boss"), "{error}");
    }
    Gateway::start(&options(&[])).unwrap();
}
