//! Keys of clients by file.

use std::fs;

use gateway::Options;
use serde_json::json;

use super::support::{TempDir, bearer};
use crate::support::{Client, Worker, ok, options, posting, raw, start_with, until};

#[tokio::test]
async fn key_is_withdrawn_while_the_gateway_runs_and_counted_by_name_until_then() {
    let (dir, worker) = (TempDir::new("withdrawn"), Worker::doing(ok()).await);
    let file = dir.write_keys("keys.json", &["alice", "bob"]);
    let gateway = start_with(Options {
        api_keys_file: Some(file.clone()),
        ..options(&[&worker])
    })
    .await;
    let ask = async |key: &str| {
        let request = posting("/generate", &bearer(key), "{}");
        raw(&gateway, &request).await.status
    };
    assert_eq!((ask("alice").await, ask("bob").await), (200, 200));
    let counted = |page: &str, key: &str| {
        let line = format!("smg_api_key_requests_total{{key=\"{key}\"}} ");
        page.lines().any(|it| it.starts_with(&line))
    };
    let page = gateway.metrics().await;
    assert!(counted(&page, "alice") && counted(&page, "bob"));
    // No key goes to a worker.
    let received = worker.received();
    assert!(received.iter().all(|it| it.all("authorization").is_empty()));
    let next = dir.write_keys("next.json", &["bob", "carol"]);
    fs::rename(next, &file).unwrap();
    until(|| async { ask("alice").await == 401 }).await;
    assert_eq!((ask("bob").await, ask("carol").await), (200, 200));
    let page = gateway.metrics().await;
    assert!(!counted(&page, "alice") && counted(&page, "bob"));
}

#[tokio::test]
async fn key_of_a_file_is_taken_where_anthropics_sdks_put_it() {
    let dir = TempDir::new("anthropic");
    let gateway = start_with(Options {
        api_keys_file: Some(dir.write_keys("keys.json", &["alice"])),
        ..options(&[])
    })
    .await;
    for (path, key, status) in [
        ("/v1/messages", "alice", 503),
        ("/v1/messages", "bob", 401),
        ("/generate", "alice", 401),
    ] {
        let request = posting(path, &format!("x-api-key: {key}\r\n"), "{}");
        assert_eq!(raw(&gateway, &request).await.status, status, "{path} {key}");
    }
}

#[tokio::test]
async fn key_beyond_its_limits_gets_429_with_the_limits_name_and_others_do_not() {
    let (dir, worker) = (TempDir::new("limits"), Worker::doing(ok()).await);
    let path = dir.path("keys.json");
    let keys = json!([
        {"name": "rated", "key": "rated", "rpm_limit": 2},
        {"name": "narrow", "key": "narrow", "max_parallel_requests": 1},
        {"name": "free", "key": "free"},
    ]);
    fs::write(&path, keys.to_string()).unwrap();
    let gateway = start_with(Options {
        api_keys_file: Some(path.to_str().unwrap().to_owned()),
        ..options(&[&worker])
    })
    .await;
    let ask = async |key: &str| raw(&gateway, &posting("/generate", &bearer(key), "{}")).await;
    for expected in [200, 200, 429] {
        assert_eq!(ask("rated").await.status, expected);
    }
    let refused = ask("rated").await;
    assert_eq!(refused.code(), "key_limit_reached");
    assert!(refused.text().contains("rpm_limit"), "{refused:?}");
    let wait: u64 = refused.all("retry-after")[0].parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    // A body that does not come holds its place.
    let mut slow = Client::to(&gateway).await;
    let extra = format!("{}Expect: 100-continue\r\n", bearer("narrow"));
    let whole = posting("/generate", &extra, "{}");
    slow.send(&whole[..whole.len() - 1]).await;
    let awaited = slow.read_until("\r\n\r\n").await;
    assert!(awaited.contains(" 100 "), "{awaited}");
    assert_eq!(ask("free").await.status, 200);
    let refused = ask("narrow").await;
    assert!(
        refused.text().contains("max_parallel_requests"),
        "{refused:?}"
    );
    assert_eq!(refused.all("retry-after"), ["1"]);
    slow.send(&whole[whole.len() - 1..]).await;
    slow.read_until("HTTP/1.1 200 OK").await;
    until(|| async { ask("narrow").await.status == 200 }).await;
    let page = gateway.metrics().await;
    let line = "smg_api_key_refused_total{key=\"rated\",limit=\"rpm_limit\"} 2\n";
    assert!(page.contains(line));
}
