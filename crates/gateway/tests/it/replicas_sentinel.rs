//! Gateways whose server is named by a sentinel, with a real Redis where one is installed.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gateway::Options;
use gateway::config::Secret;
use routing::PolicyKind;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::replicas::{PASSWORD, server};
use crate::support::{
    Running, Worker, get, json as reply, options, posting, raw, start_with, until,
};

/// A server, its replica, and a sentinel that makes the replica the master when the server is gone.
struct Servers {
    folder: PathBuf,
    sentinel_port: u16,
    /// Master, replica, sentinel.
    processes: [Child; 3],
}

fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

/// Whether a server has a replica that follows it.
async fn has_replica(port: u16) -> bool {
    let client = redis::Client::open(format!("redis://:{PASSWORD}@127.0.0.1:{port}/0")).unwrap();
    let Ok(mut connection) = client.get_multiplexed_async_connection().await else {
        return false;
    };
    let mut info = redis::cmd("INFO");
    let info = info
        .arg("replication")
        .query_async::<String>(&mut connection);
    info.await.is_ok_and(|shown| shown.contains("state=online"))
}

impl Servers {
    /// `None` where no server is installed.
    async fn start() -> Option<Self> {
        let server = server()?;
        let ports = [(); 3].map(|()| free_port());
        let folder = std::env::temp_dir().join(format!("smg-sentinel-{}", ports[2]));
        fs::create_dir_all(&folder).unwrap();
        let spawn = |flags: &[&str]| {
            let mut command = Command::new(&server);
            command.args(flags).stdout(Stdio::null());
            command.current_dir(&folder).spawn().unwrap()
        };
        let [port, replica_port, sentinel_port] = ports.map(|port| port.to_string());
        let shared = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let login = ["--requirepass", PASSWORD, "--masterauth", PASSWORD];
        let master = spawn(&[&["--port", &port], &shared[..], &login].concat());
        let replica = ["--port", &replica_port, "--replicaof", "127.0.0.1", &port];
        let replica = spawn(&[&replica, &shared[..], &login].concat());
        // A sentinel asks for replicas at first, and then every ten seconds.
        until(|| has_replica(ports[0])).await;
        let text = format!(
            "port {sentinel_port}\nbind 127.0.0.1\nsentinel monitor smg 127.0.0.1 {port} 1\n\
             sentinel auth-pass smg {PASSWORD}\nsentinel down-after-milliseconds smg 500\n\
             sentinel failover-timeout smg 3000\n"
        );
        let config = folder.join("sentinel.conf");
        fs::write(&config, text).unwrap();
        let sentinel = spawn(&[config.to_str().unwrap(), "--sentinel"]);
        Some(Self {
            sentinel_port: ports[2],
            processes: [master, replica, sentinel],
            folder,
        })
    }

    fn url(&self) -> String {
        let port = self.sentinel_port;
        // The first sentinel is not there.
        format!("redis+sentinel://:{PASSWORD}@127.0.0.1:1,127.0.0.1:{port}/smg/2")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn shown(gateway: &Running) -> Value {
    get(gateway, "/debug/replicas").await.json()
}

/// Waits until all three tasks of a gateway reach the server, and it hears the other one. An
/// election takes seconds, and the next attempt to connect up to five.
async fn are_together(gateway: &Running) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let shown = shown(gateway).await;
        let (limits, keys) = (
            &shown["rate_limits"]["state"],
            &shown["routing_keys"]["state"],
        );
        let mut replicas = shown["replicas"].as_array().unwrap().iter();
        let is_heard = replicas.any(|row| row["live"] == true);
        if limits == "shared" && keys == "shared" && shown["connected"] == true && is_heard {
            return;
        }
        assert!(Instant::now() < end, "{shown}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn serve(gateway: &Running, session: usize) -> (u16, String) {
    let key = format!("x-smg-routing-key: session-{session}\r\n");
    let reply = raw(gateway, &posting("/v1/chat/completions", &key, "{}")).await;
    (reply.status, reply.text())
}

#[tokio::test]
async fn gateways_follow_the_sentinel_to_another_server_without_a_failed_request() {
    let Some(mut servers) = Servers::start().await else {
        return;
    };
    let mut workers = Vec::new();
    for number in 0..3 {
        let answer = format!("{{\"worker\":{number}}}");
        workers.push(Worker::scripted(move |_| reply(200, &answer)).await);
    }
    let workers: Vec<&Worker> = workers.iter().collect();
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let gateway = start_with(Options {
            policy: PolicyKind::Manual,
            shared_state: Some(Secret::from(servers.url())),
            max_concurrent_requests: 100,
            ..options(&workers)
        });
        gateways.push(gateway.await);
    }
    for gateway in &gateways {
        are_together(gateway).await;
    }
    let address = shown(&gateways[0]).await["shared_state"].clone();
    assert!(
        address
            .as_str()
            .unwrap()
            .starts_with("smg of 127.0.0.1:1, "),
        "{address}"
    );
    let mut before = Vec::new();
    for session in 0..20 {
        before.push(serve(&gateways[0], session).await);
    }
    // The replica has the keys, too, and the sentinel has seen it.
    sleep(Duration::from_secs(3)).await;
    servers.processes[0].kill().unwrap();
    until(|| async { shown(&gateways[0]).await["connected"] == false }).await;
    for (session, known) in before.iter().enumerate() {
        assert_eq!(serve(&gateways[1], session).await, *known);
    }
    for gateway in &gateways {
        are_together(gateway).await;
    }
    for (session, known) in before.iter().enumerate() {
        assert_eq!(serve(&gateways[0], session).await, *known);
    }
}
