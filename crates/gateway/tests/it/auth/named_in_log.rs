//! The names of keys in the lines of requests that were refused.

use std::fs;
use std::time::Duration;

use gateway::Options;
use serde_json::{Value, json};

use super::support::{TempDir, bearer, with_control_keys};
use crate::support::{Worker, ok, options, posting, raw, start_with, until};

#[tokio::test]
async fn refused_request_that_shows_a_known_key_is_logged_with_its_name() {
    let (dir, worker) = (TempDir::new("named"), Worker::doing(ok()).await);
    let keys = json!([
        {"name": "alice", "key": "sk-a", "rpm_limit": 1},
        {"name": "bob", "key": "sk-b", "models": []},
    ]);
    fs::write(dir.path("keys.json"), keys.to_string()).unwrap();
    let text = |name: &str| dir.path(name).to_str().unwrap().to_owned();
    let gateway = start_with(Options {
        api_keys_file: Some(text("keys.json")),
        access_log: Some(text("access.log")),
        api_key: Some("sk-gateway".to_owned().into()),
        control_plane_auth: with_control_keys().control_plane_auth,
        ..options(&[&worker])
    })
    .await;
    let cases = [
        ("first", "sk-a", "/generate", 200, "alice"),
        ("limit", "sk-a", "/generate", 429, "alice"),
        ("model", "sk-b", "/generate", 403, "bob"),
        ("plane", "sk-b", "/add_worker", 401, "bob"),
        ("gateway", "sk-gateway", "/add_worker", 401, "api_key"),
        ("role", "guest", "/add_worker", 403, "eye"),
        ("data", "boss", "/generate", 401, "ops"),
        ("unknown", "sk-c", "/generate", 401, ""),
    ];
    for (id, key, path, status, _) in cases {
        let lines = format!("{}x-request-id: {id}\r\n", bearer(key));
        let request = posting(path, &lines, "{}");
        let reply = raw(&gateway, &request).await;
        assert_eq!(reply.status, status, "{id}: {reply:?}");
    }
    gateway.gateway.drain();
    until(|| async { gateway.gateway.wait(Duration::ZERO) }).await;
    let files = fs::read_dir(dir.path("")).unwrap().flatten();
    let logs = files.filter(|file| file.file_name().to_string_lossy().starts_with("access"));
    let text: String = logs
        .map(|file| fs::read_to_string(file.path()).unwrap())
        .collect();
    let lines: Vec<Value> = text
        .lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    for (id, .., status, name) in cases {
        let line = lines.iter().find(|line| line["id"] == id).unwrap();
        let named = line["key"].as_str().unwrap_or_default();
        assert_eq!(
            (line["status"].as_u64(), named),
            (Some(status.into()), name),
            "{id}"
        );
    }
    assert!(!text.contains("sk-"), "{text}");
}
