//! A gateway on a free port, and its log where the test's output goes.

use std::net::SocketAddr;

use gateway::{Gateway, Options};
use routing::PolicyKind;
use tokio::net::TcpStream;

use super::log::capture_log;
use super::{Reply, Worker, get, posting, raw, until};

/// A gateway under test.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
}

/// Options of a gateway before these workers, on free ports.
pub(crate) fn options(workers: &[&Worker]) -> Options {
    capture_log();
    uncaptured(workers)
}

/// The same for a gateway that writes its own log: in a process of its own.
pub(crate) fn uncaptured(workers: &[&Worker]) -> Options {
    Options {
        worker_urls: workers.iter().map(|worker| worker.url()).collect(),
        policy: PolicyKind::RoundRobin,
        host: "127.0.0.1".into(),
        port: 0,
        prometheus_port: Some(0),
        worker_startup_check_interval: 1,
        ..Options::default()
    }
}

/// Starts a gateway whose workers are all ready.
pub(crate) async fn start(workers: &[&Worker]) -> Running {
    start_with(options(workers)).await
}

/// Starts a gateway and waits until its workers are ready.
pub(crate) async fn start_with(options: Options) -> Running {
    let pairs = options.prefill_urls.as_ref().map_or(0, Vec::len)
        + options.decode_urls.as_ref().map_or(0, Vec::len);
    let count = options.worker_urls.len() + pairs;
    let running = Running {
        gateway: Gateway::start(&options).unwrap(),
    };
    // A shared port is listened on only once a worker is ready.
    until(|| async { TcpStream::connect(running.gateway.addr()).await.is_ok() }).await;
    if count > 0 {
        running.has_ready(count).await;
    }
    running
}

impl From<&Running> for SocketAddr {
    fn from(running: &Running) -> Self {
        running.gateway.addr()
    }
}

impl Running {
    /// Waits until so many workers are ready.
    pub(crate) async fn has_ready(&self, count: usize) {
        until(|| async { get(self, "/readiness").await.json()["healthy_workers"] == count }).await;
    }

    /// Requests in flight at the gateway's workers.
    pub(crate) async fn in_flight(&self) -> i64 {
        let workers: serde_json::Value = get(self, "/workers").await.json();
        let workers = workers["workers"].as_array().unwrap().clone();
        workers
            .iter()
            .map(|worker| worker["load"].as_i64().unwrap())
            .sum()
    }

    /// The metrics page.
    pub(crate) async fn metrics(&self) -> String {
        let addr = self.gateway.metrics_addr().unwrap();
        get(addr, "/metrics").await.text()
    }
}

/// Options without retries and with a breaker that opens after three failures for a second.
pub(crate) fn touchy(workers: &[&Worker]) -> Options {
    Options {
        disable_retries: true,
        cb_failure_threshold: 3,
        cb_success_threshold: 2,
        cb_timeout_duration_secs: 1,
        disable_health_check: true,
        ..options(workers)
    }
}

/// The state of a worker's breaker.
pub(crate) async fn circuit(gateway: &Running, index: usize) -> String {
    let workers = get(gateway, "/workers").await.json();
    let circuit = &workers["workers"][index]["circuit_breaker"];
    circuit.as_str().unwrap().to_owned()
}

/// A request for the first worker and no other.
pub(crate) async fn aimed(gateway: &Running) -> Reply {
    let request = posting("/generate", "x-smg-target-worker: 0\r\n", "{}");
    raw(gateway, &request).await
}
