//! Several gateways: without their server, and with a real one where one is installed.

use std::env;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use gateway::Options;
use gateway::config::{Secret, check};
use routing::PolicyKind;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    Client, Running, Worker, get, json as reply, ok, options, post, posting, start_with, until,
};

pub(crate) const PASSWORD: &str = "s3cret-of-redis";

/// A redis-server of this test, without files.
pub(crate) struct Redis {
    server: String,
    port: u16,
    process: Child,
}

impl Redis {
    /// `None` where no server is installed.
    #[expect(clippy::print_stderr, reason = "what is skipped says why")]
    pub(crate) fn start() -> Option<Self> {
        let Some(server) = server() else {
            eprintln!("skipped: needs redis-server or valkey-server on PATH, or REDIS_SERVER");
            return None;
        };
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        Some(Self {
            process: spawn(&server, port),
            server,
            port,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{}/3", self.port)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.process = spawn(&self.server, self.port);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The server that is asked for, or one that is installed.
pub(crate) fn server() -> Option<String> {
    if let Ok(server) = env::var("REDIS_SERVER") {
        return Some(server);
    }
    let path = env::var_os("PATH")?;
    let names = ["redis-server", "valkey-server"];
    let mut files = env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name)));
    let found = files.find(|file| file.is_file())?;
    Some(found.to_string_lossy().into_owned())
}

fn spawn(server: &str, port: u16) -> Child {
    let mut command = Command::new(server);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args([
        "--save",
        "",
        "--appendonly",
        "no",
        "--requirepass",
        PASSWORD,
    ]);
    command.stdout(Stdio::null()).spawn().unwrap()
}

fn sharing(workers: &[&Worker], url: String) -> Options {
    Options {
        policy: PolicyKind::CacheAware,
        shared_state: Some(Secret::from(url)),
        ..options(workers)
    }
}

async fn replicas(gateway: &Running) -> Value {
    get(gateway, "/debug/replicas").await.json()
}

/// Waits until a gateway hears so many others.
async fn hears(gateway: &Running, count: usize) {
    until(|| async {
        let shown = replicas(gateway).await;
        let rows = shown["replicas"].as_array().unwrap().clone();
        let live = rows.iter().filter(|row| row["live"] == true);
        shown["connected"] == true && live.count() == count
    })
    .await;
}

fn chat(number: usize) -> String {
    let text = format!("conversation {number}: {}", "words and words ".repeat(400));
    json!({"model": "m", "messages": [{"role": "user", "content": text}]}).to_string()
}

/// The worker that is believed to hold a prompt, and how many tokens of it.
async fn belief(gateway: &Running, number: usize) -> (String, u64) {
    let page = post(gateway, "/route/explain", &chat(number)).await.json();
    let rows = page["candidates"].as_array().unwrap();
    let matched = |row: &Value| row["matched_tokens"].as_u64().unwrap();
    let best = rows.iter().max_by_key(|row| matched(row)).unwrap();
    (best["worker"].as_str().unwrap().to_owned(), matched(best))
}

/// Requests one after the other until `stop`; their times in ms, and how many failed.
async fn requests(address: std::net::SocketAddr, stop: Arc<AtomicBool>) -> (Vec<f64>, usize) {
    let (mut times, mut failed) = (Vec::new(), 0);
    let mut client = Client::to(address).await;
    for number in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        let began = Instant::now();
        let body = chat(number % 50);
        client
            .send(&posting("/v1/chat/completions", "", &body))
            .await;
        match client.try_reply().await {
            Some(reply) if reply.status == 200 => {}
            _ => {
                failed += 1;
                client = Client::to(address).await;
            }
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        sleep(Duration::from_millis(2)).await;
    }
    (times, failed)
}

fn p99(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() * 99 / 100]
}

#[tokio::test]
async fn gateway_serves_without_its_shared_state_and_shows_no_password() {
    let worker = Worker::doing(ok()).await;
    let url = format!("redis://someone:{PASSWORD}@127.0.0.1:1/0");
    let gateway = start_with(sharing(&[&worker], url)).await;
    assert_eq!(
        post(&gateway, "/v1/chat/completions", &chat(1))
            .await
            .status,
        200
    );
    until(|| async { replicas(&gateway).await["connected"] == false }).await;
    let shown = replicas(&gateway).await;
    assert_eq!(shown["shared_state"], "127.0.0.1:1");
    let config = get(&gateway, "/debug/config").await.text();
    assert!(config.contains("shared_state") && !config.contains(PASSWORD));
    assert!(!shown.to_string().contains(PASSWORD));
    assert!(
        gateway
            .metrics()
            .await
            .contains("smg_shared_state_connected 0")
    );
}

#[tokio::test]
async fn gateway_without_a_shared_state_lists_no_replicas() {
    let worker = Worker::doing(ok()).await;
    let gateway = start_with(options(&[&worker])).await;
    let shown = replicas(&gateway).await;
    assert_eq!(shown, json!({"shared_state": null, "replicas": []}));
}

#[test]
fn malformed_url_is_refused_without_being_repeated() {
    for url in ["s3cret:6379", "http://s3cret@host", "redis://:s3cret@", ""] {
        let options = Options {
            shared_state: Some(Secret::from(url.to_owned())),
            ..Options::default()
        };
        let error = check(&options).unwrap_err().to_string();
        assert!(error.contains("'shared_state'"), "{error}");
        assert!(url.is_empty() || !error.contains(url), "{error}");
    }
}

#[tokio::test]
async fn gateways_share_a_real_redis_and_no_request_fails_while_it_is_frozen_or_killed() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(Worker::scripted(|_| reply(200, "{}")).await);
    }
    let workers: Vec<&Worker> = workers.iter().collect();
    let one = start_with(sharing(&workers, redis.url())).await;
    let two = start_with(sharing(&workers, redis.url())).await;
    hears(&one, 1).await;
    hears(&two, 1).await;
    // What one places, the other knows.
    assert_eq!(belief(&two, 999).await.1, 0);
    post(&one, "/v1/chat/completions", &chat(999)).await;
    until(|| async { belief(&two, 999).await.1 > 1000 }).await;
    assert_eq!(belief(&one, 999).await, belief(&two, 999).await);
    // A new one takes that over.
    let three = start_with(sharing(&workers, redis.url())).await;
    until(|| async { belief(&three, 999).await.1 > 1000 }).await;
    hears(&three, 2).await;

    let stop = Arc::new(AtomicBool::new(false));
    let load = [&one, &two].map(|gateway| {
        let stop = Arc::clone(&stop);
        tokio::spawn(requests(gateway.gateway.addr(), stop))
    });
    sleep(Duration::from_secs(2)).await;
    redis.signal(Signal::STOP);
    until(|| async { replicas(&one).await["connected"] == false }).await;
    sleep(Duration::from_secs(2)).await;
    redis.signal(Signal::CONT);
    hears(&one, 2).await;
    redis.kill();
    until(|| async { replicas(&two).await["connected"] == false }).await;
    post(&one, "/v1/chat/completions", &chat(1234)).await;
    sleep(Duration::from_secs(2)).await;
    redis.restart();
    for gateway in [&one, &two, &three] {
        hears(gateway, 2).await;
    }
    // What was missed meanwhile is asked for.
    until(|| async { belief(&two, 1234).await.1 > 1000 }).await;
    stop.store(true, Relaxed);
    for load in load {
        let (mut times, failed) = load.await.unwrap();
        assert_eq!(failed, 0);
        assert!(times.len() > 200, "{}", times.len());
        // Nothing waits for a server that takes seconds.
        assert!(p99(&mut times) < 500.0, "{}", p99(&mut times));
    }
    // One that stops is gone at once.
    three.gateway.drain();
    hears(&one, 1).await;
}
