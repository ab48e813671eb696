//! Requests that wait in the fair order: by key, by class, and pushed out of a full line.

use std::fs;

use gateway::Options;
use gateway::config::QueueOrder;
use serde_json::{Value, json};

use super::support::{TempDir, bearer};
use crate::support::{Client, Running, Step, Worker, ok, options, posting, raw, start_with, until};

/// A gateway that lets one request through at a time, and a worker that answers when the test says so.
struct Stage {
    gateway: Running,
    worker: Worker,
    clients: Vec<Client>,
    _dir: TempDir,
}

/// What limits requests.
#[derive(Clone, Copy, Debug)]
enum Limit {
    AtAll,
    PerWorker,
}

impl Stage {
    async fn new(limit: Limit, queue_size: u64) -> Self {
        let worker = Worker::doing([vec![Step::Wait], ok()].concat()).await;
        let dir = TempDir::new("fair_order");
        let path = dir.path("keys.json");
        let keys = json!([
            {"name": "noisy", "key": "noisy"},
            {"name": "quiet", "key": "quiet"},
            {"name": "offline", "key": "offline", "max_priority": "batch"},
        ]);
        fs::write(&path, keys.to_string()).unwrap();
        let mut options = Options {
            api_keys_file: Some(path.to_str().unwrap().to_owned()),
            api_key: Some("operator".to_owned().into()),
            queue_order: QueueOrder::Fair,
            ..options(&[&worker])
        };
        options.queue_size = queue_size;
        match limit {
            Limit::AtAll => options.max_concurrent_requests = 1,
            Limit::PerWorker => options.max_requests_per_worker = 1,
        }
        let gateway = start_with(options).await;
        let mut stage = Self {
            gateway,
            worker,
            clients: Vec::new(),
            _dir: dir,
        };
        stage.send("noisy", "first", "").await;
        until(|| async { stage.worker.received().len() == 1 }).await;
        stage
    }

    /// Sends a request with a key, which is called so.
    async fn send(&mut self, key: &str, name: &str, lines: &str) {
        let mut client = Client::to(&self.gateway).await;
        let body = json!({"text": name}).to_string();
        let lines = bearer(key) + lines;
        client.send(&posting("/generate", &lines, &body)).await;
        self.clients.push(client);
    }

    /// The same, and waits until it is one of so many that wait.
    async fn queue(&mut self, waiting: u64, key: &str, name: &str, lines: &str) {
        self.send(key, name, lines).await;
        until(|| async { self.waiting().await == waiting }).await;
    }

    async fn waiting(&self) -> u64 {
        let limits = self.get("/debug/limits").await;
        let waiting = ["queued", "queued_for_a_worker"].map(|key| limits[key].as_u64().unwrap());
        waiting.iter().sum()
    }

    async fn is_idle(&self) -> bool {
        self.waiting().await == 0 && self.get("/workers").await["workers"][0]["load"] == 0
    }

    /// A page of the control plane.
    async fn get(&self, path: &str) -> Value {
        let key = bearer("operator");
        let request = format!("GET {path} HTTP/1.1\r\nhost: g\r\n{key}\r\n");
        raw(&self.gateway, request.as_bytes()).await.json()
    }

    /// Lets the worker answer all, and returns their names in the order in which it got them.
    async fn order(&self) -> Vec<String> {
        until(|| async {
            self.worker.go_on();
            self.is_idle().await
        })
        .await;
        let name = |body: &[u8]| {
            let body: Value = serde_json::from_slice(body).unwrap();
            body["text"].as_str().unwrap().to_owned()
        };
        let received = self.worker.received();
        received.iter().map(|request| name(&request.body)).collect()
    }
}

#[tokio::test]
async fn quiet_key_waits_for_one_request_of_a_noisy_one_at_most() {
    for limit in [Limit::AtAll, Limit::PerWorker] {
        let mut stage = Stage::new(limit, 9).await;
        for waiting in 1..=5 {
            stage.queue(waiting, "noisy", "noisy", "").await;
        }
        stage.queue(6, "quiet", "quiet", "").await;
        let order = stage.order().await;
        let turn = order.iter().position(|name| name == "quiet").unwrap();
        assert!(turn <= 2, "{limit:?}: {order:?}");
        assert_eq!(order.len(), 7);
        for client in &mut stage.clients {
            assert_eq!(client.reply().await.status, 200);
        }
    }
}

#[tokio::test]
async fn batch_waits_for_interactive_and_a_key_raises_no_request_above_its_class() {
    for limit in [Limit::AtAll, Limit::PerWorker] {
        let mut stage = Stage::new(limit, 9).await;
        stage
            .queue(1, "quiet", "batch", "x-smg-priority: batch\r\n")
            .await;
        stage
            .queue(2, "offline", "offline", "x-smg-priority: interactive\r\n")
            .await;
        stage.queue(3, "quiet", "interactive", "").await;
        let order = stage.order().await;
        assert_eq!(order[1], "interactive", "{limit:?}: {order:?}");
        let metrics = stage.gateway.metrics().await;
        for line in [
            "smg_queue_requests_total{class=\"batch\",result=\"served\"} 2\n",
            "smg_queue_requests_total{class=\"interactive\",result=\"served\"} 1\n",
            "smg_queue_wait_seconds_count{class=\"batch\"} 2\n",
        ] {
            assert!(metrics.contains(line), "{limit:?}: {line}");
        }
    }
}

#[tokio::test]
async fn interactive_request_pushes_the_latest_batch_request_out_of_a_full_line() {
    for limit in [Limit::AtAll, Limit::PerWorker] {
        let mut stage = Stage::new(limit, 2).await;
        let batch = "x-smg-priority: bulk\r\n";
        stage.queue(1, "noisy", "old", batch).await;
        stage.queue(2, "noisy", "new", batch).await;
        stage.send("quiet", "interactive", "").await;
        let refused = stage.clients[2].reply().await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (429, "queue_full"),
            "{limit:?}"
        );
        assert_eq!(refused.header("retry-after"), "1");
        stage.send("noisy", "late", batch).await;
        assert_eq!(stage.clients[4].reply().await.status, 429, "{limit:?}");
        assert_eq!(stage.order().await, ["first", "interactive", "old"]);
        let metrics = stage.gateway.metrics().await;
        for result in ["pushed_out", "refused"] {
            let line = format!("{{class=\"batch\",result=\"{result}\"}} 1\n");
            assert!(metrics.contains(&line), "{limit:?}: {result}");
        }
    }
}
