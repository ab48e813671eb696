//! Workers that a file lists.

use gateway::{Gateway, Options};
use serde_json::{Value, json};

use crate::support::{
    Running, WatchedFile, Worker, bare, get, ok, options, post, send, start_with, until,
};

struct ListFile(WatchedFile);

impl ListFile {
    fn new(name: &str, text: &str) -> Self {
        Self(WatchedFile::new(
            &format!("list-{name}"),
            "workers.yaml",
            text,
        ))
    }

    fn replace(&self, text: &str) {
        self.0.replace(text);
    }

    async fn start(&self) -> Running {
        start_with(self.options()).await
    }

    fn options(&self) -> Options {
        Options {
            discovery_file: Some(self.0.path()),
            ..options(&[])
        }
    }
}

/// URL and source of every worker.
async fn listed(gateway: &Running) -> Vec<(String, String)> {
    let body = get(gateway, "/workers").await.json();
    let text = |worker: &Value, name: &str| worker[name].as_str().unwrap_or_default().to_owned();
    let workers = body["workers"].as_array().unwrap().iter();
    let mut all: Vec<_> = workers
        .filter(|worker| worker["status"] != "draining")
        .map(|worker| (text(worker, "url"), text(worker, "source")))
        .collect();
    all.sort();
    all
}

async fn until_listed(gateway: &Running, workers: &[(&Worker, &str)]) {
    let mut expected: Vec<_> = workers
        .iter()
        .map(|(worker, source)| (worker.url(), (*source).to_owned()))
        .collect();
    expected.sort();
    until(|| async { listed(gateway).await == expected }).await;
}

async fn sample(gateway: &Running, line: &str) -> bool {
    gateway.metrics().await.lines().any(|it| it == line)
}

#[tokio::test]
async fn workers_follow_the_file_and_what_it_says_of_them() {
    let (a, b) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let file = ListFile::new("follow", &format!("- {}\n", a.url()));
    let gateway = file.start().await;
    gateway.has_ready(1).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    file.replace(&format!(
        "# both\n- url: {}\n  labels: {{zone: west}}\n- {}\n",
        a.url(),
        b.url()
    ));
    until_listed(&gateway, &[(&a, "file"), (&b, "file")]).await;
    let body = get(&gateway, "/workers").await.json();
    let workers = body["workers"].as_array().unwrap();
    let west = workers.iter().find(|it| it["url"] == a.url()).unwrap();
    assert_eq!(west["metadata"]["zone"], "west", "{west}");
    file.replace(&json!([b.url()]).to_string());
    until_listed(&gateway, &[(&b, "file")]).await;
    file.replace("[]");
    until_listed(&gateway, &[]).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 503);
    assert!(sample(&gateway, "smg_discovery_up{source=\"file\"} 1").await);
}

#[tokio::test]
async fn broken_or_missing_file_leaves_the_workers_and_is_told() {
    let worker = Worker::doing(ok()).await;
    let list = format!("- {}\n", worker.url());
    let file = ListFile::new("broken", &list);
    let gateway = file.start().await;
    gateway.has_ready(1).await;
    let down = "smg_discovery_up{source=\"file\"} 0";
    let up = "smg_discovery_up{source=\"file\"} 1";
    for broken in [
        "- url: ftp://x\n",
        "- [\n",
        "- url: http://x:1\n  nonsense: 1\n",
    ] {
        file.replace(broken);
        until(|| sample(&gateway, down)).await;
        until_listed(&gateway, &[(&worker, "file")]).await;
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
        file.replace(&list);
        until(|| sample(&gateway, up)).await;
    }
    file.0.remove();
    until(|| sample(&gateway, down)).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    file.replace(&list);
    until(|| sample(&gateway, up)).await;
    for (reason, count) in [("invalid", 3), ("unreadable", 1)] {
        let counted =
            format!("smg_discovery_errors_total{{reason=\"{reason}\",source=\"file\"}} {count}");
        assert!(sample(&gateway, &counted).await, "{reason}");
    }
}

#[tokio::test]
async fn gateway_does_not_start_with_a_broken_file_and_says_where_it_is_broken() {
    let file = ListFile::new(
        "start",
        "- http://a:1\n- url: http://b:1\n  priority: high\n",
    );
    let error = Gateway::start(&file.options()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("workers.yaml:3:3: priority"), "{text}");
    file.0.remove();
    let text = Gateway::start(&file.options()).unwrap_err().to_string();
    assert!(text.contains("cannot be read"), "{text}");
}

#[tokio::test]
async fn worker_that_is_registered_too_stays_when_the_file_leaves_it_out() {
    let (a, b) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let file = ListFile::new("both", &format!("- {}\n- {}\n", a.url(), b.url()));
    let gateway = file.start().await;
    gateway.has_ready(2).await;
    let added = send(&gateway, "POST /workers", &json!({"url": a.url()})).await;
    assert_eq!(added.status, 202);
    until_listed(&gateway, &[(&a, "manual"), (&b, "file")]).await;
    file.replace("[]");
    until_listed(&gateway, &[(&a, "manual")]).await;
    // What a client removes comes back once the file has left it out.
    let list = format!("- {}\n", a.url());
    file.replace(&list);
    let id = get(&gateway, "/workers").await.json()["workers"][0]["id"].clone();
    bare(
        &gateway,
        &format!("DELETE /workers/{}", id.as_str().unwrap()),
    )
    .await;
    until_listed(&gateway, &[]).await;
    file.replace("[]");
    until(|| {
        sample(
            &gateway,
            "smg_discovery_workers_discovered{source=\"file\"} 0",
        )
    })
    .await;
    file.replace(&list);
    until_listed(&gateway, &[(&a, "file")]).await;
}
