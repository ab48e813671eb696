//! A gateway in this process; workers and load in others.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use gateway::{Gateway, Options};
use routing::PolicyKind;
use serde_json::{Value, json};
use testkit::{get, post, until};
use tokio::sync::{Mutex, MutexGuard};

/// Counts are of the process, so one test has it at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Chunks of a stream.
pub(crate) const CHUNKS: u64 = 100;

/// A load, and what stands behind the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) policy: PolicyKind,
    pub(crate) load: Value,
    pub(crate) worker: Value,
}

impl Scenario {
    /// Short requests and replies.
    pub(crate) fn json_small() -> Self {
        Self::new(PolicyKind::RoundRobin, json!({}), json!({}))
    }

    /// Requests of 32 kB.
    pub(crate) fn json_32k() -> Self {
        let load = json!({"shared_bytes": 32_000, "unique_bytes": 512});
        Self::new(PolicyKind::RoundRobin, load, json!({}))
    }

    /// Prompts of 4 kB that the policy looks up and learns.
    pub(crate) fn cache_4k() -> Self {
        let load = json!({"shared_bytes": 3500, "unique_bytes": 500, "groups": 64});
        Self::new(PolicyKind::CacheAware, load, json!({}))
    }

    /// A stream that the worker writes at once.
    pub(crate) fn stream_burst() -> Self {
        Self::stream(json!({"chunks": CHUNKS}))
    }

    /// A stream whose chunks come one by one.
    pub(crate) fn stream_paced() -> Self {
        let mut paced = Self::stream(json!({"chunks": CHUNKS, "interval_us": 2000}));
        paced.load["connections"] = json!(64);
        paced
    }

    fn stream(worker: Value) -> Self {
        let load = json!({"stream": true, "events": CHUNKS + 1});
        Self::new(PolicyKind::RoundRobin, load, worker)
    }

    fn new(policy: PolicyKind, load: Value, worker: Value) -> Self {
        Self {
            policy,
            load,
            worker,
        }
    }
}

/// A gateway that serves, and a load that can be sent to it.
pub(crate) struct Stage {
    pub(crate) gateway: Gateway,
    scenario: Scenario,
    worker: Child,
    _only: MutexGuard<'static, ()>,
}

/// A load whose process runs, and waits for the word to begin.
pub(crate) struct Load(Child);

impl Stage {
    pub(crate) async fn new(scenario: Scenario) -> Self {
        let only = ONE_AT_A_TIME.lock().await;
        let place = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = place.local_addr().unwrap().port();
        drop(place);
        let options = merge(json!({"ports": [port], "lifetime_s": 60}), &scenario.worker);
        let worker = Command::new(env!("CARGO_BIN_EXE_bench-worker"));
        let worker = started(worker, &options);
        let gateway = Gateway::start(&Options {
            worker_urls: vec![format!("http://127.0.0.1:{port}")],
            policy: scenario.policy,
            host: "127.0.0.1".to_owned(),
            port: 0,
            prometheus_port: Some(0),
            worker_startup_check_interval: 1,
            ..Options::default()
        });
        let gateway = gateway.unwrap();
        let addr = gateway.addr();
        until(|| async { get(addr, "/readiness").await.status == 200 }).await;
        let reply = post(addr, "/v1/chat/completions", "{\"model\": \"mock-model\"}").await;
        assert_eq!(reply.status, 200);
        Self {
            gateway,
            scenario,
            worker,
            _only: only,
        }
    }

    /// A load of some seconds; nothing is sent yet.
    pub(crate) fn load(&self, seconds: u32) -> Load {
        let fixed = json!({"port": self.gateway.addr().port(), "connections": 8, "warm_up_s": 0,
            "seconds": seconds});
        let options = merge(fixed, &self.scenario.load);
        // It exists before anything looks at this process's children.
        let mut shell = Command::new("sh");
        shell.args(["-c", "read begin; exec \"$0\" \"$1\""]);
        shell.arg(env!("CARGO_BIN_EXE_bench-load"));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        Load(started(shell, &options))
    }

    /// Requests that the gateway has answered so far.
    pub(crate) async fn answered(&self) -> u64 {
        let page = get(self.gateway.metrics_addr().unwrap(), "/metrics")
            .await
            .text();
        let counted = page
            .lines()
            .filter(|line| line.starts_with("smg_http_requests_total"))
            .filter(|line| line.contains("/v1/chat/completions"));
        counted
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }
}

impl Load {
    /// Sends everything; returns once it has been answered.
    pub(crate) fn run(mut self) {
        writeln!(self.0.stdin.take().unwrap(), "now").unwrap();
        let done = self.0.wait_with_output().unwrap();
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(report["errors"], 0, "{report}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.worker.kill();
        let _ = self.worker.wait();
    }
}

fn started(mut command: Command, options: &Value) -> Child {
    command.arg(options.to_string()).spawn().unwrap()
}

fn merge(mut one: Value, other: &Value) -> Value {
    for (name, value) in other.as_object().unwrap() {
        one[name] = value.clone();
    }
    one
}
