//! Random files, right and wrong, one after the other, under load.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tracing::info;

use super::{ConfigFile, reload};
use crate::support::{Client, Running, Worker, get, ok, posting};

/// Options by name, and their values in force.
type Model = BTreeMap<&'static str, Value>;

/// Clients that send one request after the other.
const CLIENTS: usize = 8;
/// Growth of the process that is no leak: caches, arenas, sockets; bytes.
const SLACK: usize = 24 << 20;

/// What a right file may say of an option.
fn right(rng: &mut Rng, name: &str, workers: &[String]) -> Value {
    match name {
        "worker_urls" => {
            let mut some = workers.to_vec();
            rng.shuffle(&mut some);
            some.truncate(rng.usize(1..=workers.len()));
            some.sort();
            json!(some)
        }
        "policy" => json!(
            *rng.choice(&["cache_aware", "random", "round_robin", "manual", "bucket"])
                .unwrap()
        ),
        "assignment_mode" => json!(*rng.choice(&["random", "min_load", "min_group"]).unwrap()),
        "log_level" => json!(*rng.choice(&["error", "warn"]).unwrap()),
        "cors_allowed_origins" => json!([format!("https://{}.example", rng.u8(..))]),
        "cache_threshold" => json!(f64::from(rng.u8(..)) / 256.0),
        "balance_rel_threshold" => json!(1.0 + f64::from(rng.u8(..)) / 16.0),
        "disable_circuit_breaker" | "disable_health_check" | "explain_routing" => json!(rng.bool()),
        "max_concurrent_requests" => json!(if rng.bool() { -1 } else { rng.i32(16..99) }),
        "rate_limit_tokens_per_second" => json!(rng.bool().then(|| rng.i32(100_000..200_000))),
        "max_requests_per_worker" => json!(if rng.bool() { 0 } else { rng.u64(16..99) }),
        "request_timeout_secs" | "queue_timeout_secs" => json!(rng.u64(30..99)),
        _ => json!(rng.u64(100..9999)),
    }
}

/// The options that files name, all of which can change.
const NAMES: [&str; 27] = [
    "assignment_mode",
    "balance_abs_threshold",
    "balance_rel_threshold",
    "bucket_adjust_interval_secs",
    "cache_threshold",
    "cb_failure_threshold",
    "cb_timeout_duration_secs",
    "cors_allowed_origins",
    "disable_circuit_breaker",
    "disable_health_check",
    "eviction_interval_secs",
    "explain_routing",
    "health_check_interval_secs",
    "health_failure_threshold",
    "log_level",
    "max_concurrent_requests",
    "max_idle_secs",
    "max_requests_per_worker",
    "policy",
    "queue_size",
    "queue_timeout_secs",
    "rate_limit_tokens_per_second",
    "request_timeout_secs",
    "retry_max_backoff_ms",
    "slow_start_secs",
    "worker_drain_timeout_secs",
    "worker_urls",
];

/// A line that makes a file wrong, at its end or its beginning.
fn wrong(rng: &mut Rng) -> &'static str {
    rng.choice(&[
        "no_such_option: 1\n",
        "reuse_port: true\n",
        "max_payload_size: 1\n",
        "cb_success_threshold: 0\n",
        "retry_jitter_factor: 7\n",
        "retry_jitter_factor: much\n",
        "api_keys_file: /nowhere/keys.json\n",
        "discovery_file: /nowhere/workers.yaml\n",
        "enable_wasm: true\n",
        "health_check_endpoint: health\n",
        "selector: [\n",
        "decode_urls: [http://a:1]\n",
    ])
    .unwrap()
}

fn text(options: &Model) -> String {
    let line = |(name, value): (&&str, &Value)| format!("{name}: {value}\n");
    options.iter().map(line).collect()
}

async fn shown(gateway: &Running) -> Model {
    let page = get(gateway, "/debug/config").await.json();
    let value = |name: &&'static str| (*name, page["options"][*name]["value"].clone());
    NAMES.iter().map(value).collect()
}

/// Memory of this process, bytes.
fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Clients that send requests until they are stopped; each must be answered by 200.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin(addr: SocketAddr) -> Self {
        let (stop, served) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let clients = (0..CLIENTS).map(|at| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            tokio::spawn(async move {
                let mut client = Client::to(addr).await;
                let body = format!("{{\"text\": \"client {at} {}\"}}", "x".repeat(at * 100));
                let lines = format!("x-smg-routing-key: {at}\r\n");
                while !stop.load(SeqCst) {
                    client.send(&posting("/generate", &lines, &body)).await;
                    let reply = client.reply().await;
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    served.fetch_add(1, SeqCst);
                }
            })
        });
        Self {
            clients: clients.collect(),
            stop,
            served,
        }
    }

    /// Returns how many requests have been served.
    async fn end(self) -> usize {
        self.stop.store(true, SeqCst);
        for client in self.clients {
            client.await.unwrap();
        }
        self.served.load(SeqCst)
    }
}

/// A file that differs from `model` in some options, and what it makes of them; half of the time
/// it is wrong.
fn file_after(rng: &mut Rng, model: &Model, urls: &[String]) -> (String, Option<Model>) {
    let mut next = model.clone();
    for _ in 0..rng.usize(1..8) {
        let name = *rng.choice(&NAMES).unwrap();
        next.insert(name, right(rng, name, urls));
    }
    let said = text(&next);
    if rng.bool() {
        return (said, Some(next));
    }
    let line = wrong(rng);
    let said = if rng.bool() {
        format!("{line}{said}")
    } else {
        said + line
    };
    (said, None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_files_are_put_in_force_whole_or_not_at_all_and_no_request_fails() {
    let reloads = std::env::var("RELOADS").ok();
    let reloads = reloads.map_or(60, |count| count.parse().unwrap());
    let workers = [
        Worker::doing(ok()).await,
        Worker::doing(ok()).await,
        Worker::doing(ok()).await,
    ];
    let urls: Vec<_> = workers.iter().map(Worker::url).collect();
    let mut rng = Rng::with_seed(7);
    let first = Model::from([("worker_urls", json!(urls)), ("log_level", json!("error"))]);
    let file = ConfigFile::new("model", &text(&first));
    let gateway = file.start().await;
    gateway.has_ready(3).await;
    let mut model = shown(&gateway).await;
    let load = Load::begin(gateway.gateway.addr());
    let (mut accepted, mut settled) = (0, 0);
    for at in 0..reloads {
        let (said, next) = file_after(&mut rng, &model, &urls);
        file.replace(&said);
        let reply = reload(&gateway).await;
        assert_eq!(
            reply.status == 200,
            next.is_some(),
            "{}\n{said}",
            reply.text()
        );
        accepted += usize::from(next.is_some());
        model = next.unwrap_or(model);
        assert_eq!(
            shown(&gateway).await,
            model,
            "after {}:\n{said}",
            reply.text()
        );
        workers.iter().for_each(Worker::forget_received);
        if at == reloads / 4 {
            settled = resident();
        }
    }
    let served = load.end().await;
    assert!(accepted > reloads / 3 && served > reloads);
    let grown = resident().saturating_sub(settled);
    assert!(grown < SLACK, "{settled} bytes have grown by {grown}");
    info!("{accepted} of {reloads} accepted, {served} served, grown by {grown} bytes");
}
