//! Each kind of option that can change, and those that cannot.

use std::fs;
use std::net::SocketAddr;
use std::net::TcpListener;

use gateway::Gateway;
use serde_json::json as value;

use super::{ConfigFile, changed, in_force, reload};
use crate::support::{
    Client, Received, Running, Step, Worker, circuit, get, json, ok, post, posting, raw,
    start_with, until,
};

fn urls(workers: &[&Worker]) -> String {
    let urls = workers.iter().map(|worker| worker.url());
    urls.collect::<Vec<_>>().join(", ")
}

async fn workers(gateway: &Running) -> Vec<String> {
    let listed = get(gateway, "/workers").await.json();
    let listed = listed["workers"].as_array().unwrap().iter();
    let stay = listed.filter(|worker| worker["status"] != "draining");
    let mut urls: Vec<_> = stay
        .map(|worker| worker["url"].as_str().unwrap().to_owned())
        .collect();
    urls.sort();
    urls
}

async fn until_workers(gateway: &Running, expected: &[&Worker]) {
    let mut urls: Vec<_> = expected.iter().map(|worker| worker.url()).collect();
    urls.sort();
    until(|| async { workers(gateway).await == urls }).await;
}

#[tokio::test]
async fn workers_come_and_go_with_the_file_and_streams_on_those_that_go_are_finished() {
    let (a, b) = (
        Worker::doing([vec![Step::Wait], ok()].concat()).await,
        Worker::doing(ok()).await,
    );
    let file = ConfigFile::new("workers", &format!("worker_urls: [{}]\n", urls(&[&a])));
    let gateway = file.start().await;
    gateway.has_ready(1).await;
    let mut waiting = Client::asking(&gateway, "").await;
    until(|| async { gateway.in_flight().await == 1 }).await;
    file.replace(&format!("worker_urls: [{}]\n", urls(&[&b])));
    assert_eq!(changed(&gateway).await, value!(["worker_urls"]));
    until_workers(&gateway, &[&b]).await;
    gateway.has_ready(1).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    a.go_on();
    assert_eq!(waiting.reply().await.status, 200);
    assert_eq!(changed(&gateway).await, value!([]));
}

#[tokio::test]
async fn last_worker_serves_until_one_that_takes_its_place_is_ready() {
    let old = Worker::doing(ok()).await;
    let file = ConfigFile::new("replace", &format!("worker_urls: [{}]\n", urls(&[&old])));
    let gateway = file.start().await;
    gateway.has_ready(1).await;
    // Nothing listens there yet.
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = place.local_addr().unwrap().port();
    drop(place);
    file.replace(&format!("worker_urls: ['http://127.0.0.1:{port}']\n"));
    assert_eq!(changed(&gateway).await, value!(["worker_urls"]));
    for _ in 0..3 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
    let new = Worker::listening(port, |_| ok()).await;
    until_workers(&gateway, &[&new]).await;
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    assert_eq!(old.received().len(), 3);
}

#[tokio::test]
async fn wrong_file_changes_nothing_and_every_mistake_is_named_with_its_place() {
    let worker = Worker::doing(ok()).await;
    let good = format!("worker_urls: [{}]\nqueue_size: 7\n", urls(&[&worker]));
    let file = ConfigFile::new("wrong", &good);
    let gateway = file.start().await;
    gateway.has_ready(1).await;
    for (wrong, why) in [
        (
            "queue_size: 9\nqueue_sise: 7\n",
            ":2:1: unknown key 'queue_sise'",
        ),
        (
            "queue_size: many\nretry_max_retries: 1\n",
            ":1:13: queue_size",
        ),
        ("queue_size: 9\ncache_threshold: 3\n", ":2:18: "),
        (
            "queue_size: 9\nmax_payload_size: 9\n",
            "'max_payload_size' cannot change",
        ),
        (
            "queue_size: 9\nhost: 0.0.0.0\nmodel_matching: any\n",
            "'model_matching' cannot change",
        ),
        (
            "queue_size: 9\napi_keys_file: /nowhere/keys\n",
            "api_keys_file",
        ),
        (
            "queue_size: 9\ndiscovery_file: /nowhere/list\n",
            "discovery_file",
        ),
        ("queue_size: [\n", ":2:1: "),
    ] {
        file.replace(wrong);
        let refused = reload(&gateway).await;
        let text = refused.text();
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (400, "invalid_configuration")
        );
        assert!(text.contains(why), "{text}");
        assert_eq!(in_force(&gateway, "queue_size").await, 7);
        let config = get(&gateway, "/debug/config").await.json();
        assert_eq!(config["last_reload"]["result"], "failed");
    }
    until_workers(&gateway, &[&worker]).await;
    file.replace(&good.replace("queue_size: 7", "queue_size: 8"));
    assert_eq!(changed(&gateway).await, value!(["queue_size"]));
    let limits = get(&gateway, "/debug/limits").await.json();
    assert_eq!(limits["queue_size"], 8);
}

#[tokio::test]
async fn given_options_win_and_the_page_says_where_each_comes_from() {
    let file = ConfigFile::new("origins", "queue_size: 7\nport: 1\napi_key: s3cret\n");
    let mut options = file.options();
    options.port = 0;
    options.queue_timeout_secs = 5;
    let gateway = start_with(options).await;
    let request = testkit::request("GET /debug/config", "authorization: Bearer s3cret\r\n", "");
    let page = raw(&gateway, &request).await;
    assert!(!page.text().contains("s3cret"));
    let options = page.json()["options"].clone();
    assert_eq!(options["port"], value!({"value": 0, "origin": "given"}));
    assert_eq!(
        options["queue_size"],
        value!({"value": 7, "origin": "file, line 1"})
    );
    assert_eq!(options["queue_timeout_secs"]["origin"], "given");
    assert_eq!(options["max_idle_secs"]["origin"], "default");
    assert_eq!(options["api_key"]["value"], "MASKED");
    assert_eq!(get(&gateway, "/debug/config").await.status, 401);
    assert_eq!(reload(&gateway).await.status, 401);
}

#[tokio::test]
async fn gateway_without_a_file_has_nothing_to_reload() {
    let gateway = start_with(crate::support::options(&[])).await;
    let refused = reload(&gateway).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("--config FILE"));
}

#[tokio::test]
async fn limits_change_and_requests_that_wait_are_let_in() {
    let worker = Worker::doing([vec![Step::Wait], ok()].concat()).await;
    let text = |limits: &str| format!("worker_urls: [{}]\n{limits}", urls(&[&worker]));
    let file = ConfigFile::new("limits", &text("max_concurrent_requests: 1\n"));
    let gateway = file.start().await;
    gateway.has_ready(1).await;
    let mut first = Client::asking(&gateway, "").await;
    until(|| async { gateway.in_flight().await == 1 }).await;
    let mut second = Client::asking(&gateway, "").await;
    let queued = |name: &'static str| {
        let gateway = &gateway;
        async move { get(gateway, "/debug/limits").await.json()[name].clone() }
    };
    until(|| async { queued("queued").await == 1 }).await;
    file.replace(&text("max_requests_per_worker: 1\n"));
    reload(&gateway).await;
    until(|| async { queued("queued_for_a_worker").await == 1 }).await;
    file.replace(&text("queue_size: 0\n"));
    reload(&gateway).await;
    until(|| async { gateway.in_flight().await == 2 }).await;
    until(|| async {
        worker.go_on();
        gateway.in_flight().await == 0
    })
    .await;
    assert_eq!(
        [first.reply().await.status, second.reply().await.status],
        [200, 200]
    );
}

#[tokio::test]
async fn keys_and_origins_change_at_once_and_no_gateway_key_reaches_a_worker() {
    let worker = Worker::doing(ok()).await;
    let text = |more: &str| format!("worker_urls: [{}]\n{more}", urls(&[&worker]));
    let file = ConfigFile::new("keys", &text("api_key: first\n"));
    let gateway = file.start().await;
    let asked = |key: &'static str, more: &'static str| {
        let lines = format!("authorization: Bearer {key}\r\nx-probe: 1\r\n{more}");
        let request = posting("/generate", &lines, "{}");
        let gateway = &gateway;
        async move { raw(gateway, &request).await }
    };
    until(|| async { asked("first", "").await.status == 200 }).await;
    let call = |key: &'static str| {
        let lines = format!("authorization: Bearer {key}\r\n");
        let request = posting("/reload", &lines, "");
        let gateway = &gateway;
        async move { raw(gateway, &request).await.status }
    };
    file.replace(&text(
        "api_key: second\ncors_allowed_origins: [https://a.example]\n",
    ));
    assert_eq!(call("second").await, 401);
    assert_eq!(call("first").await, 200);
    assert_eq!(asked("first", "").await.status, 401);
    let page = asked("second", "origin: https://a.example\r\n").await;
    assert_eq!(
        page.header("access-control-allow-origin"),
        "https://a.example"
    );
    let keys = file.beside("keys.json");
    fs::write(&keys, r#"[{"name": "team", "key": "third"}]"#).unwrap();
    file.replace(&text(&format!("api_keys_file: {keys}\n")));
    assert_eq!(call("second").await, 200);
    assert_eq!(asked("second", "").await.status, 401);
    assert_eq!(asked("third", "").await.status, 200);
    let probes = worker.received();
    let relayed = probes.iter().filter(|it| it.head.contains("x-probe"));
    assert!(relayed.clone().count() > 2);
    for Received { head, .. } in relayed {
        assert!(!head.contains("third"), "{head}");
    }
}

#[tokio::test]
async fn keys_change_at_the_metrics_port_as_well() {
    let text = |key: &str| format!("fleet_page: metrics\napi_key: {key}\n");
    let file = ConfigFile::new("metrics-keys", &text("first"));
    let gateway = file.start().await;
    let metrics = gateway.gateway.metrics_addr().unwrap();
    let status = |server: SocketAddr, line: &'static str, key: &'static str| async move {
        let head = format!("{line} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {key}\r\n\r\n");
        raw(server, head.as_bytes()).await.status
    };
    let asked = |key| status(metrics, "GET /debug/fleet.json", key);
    assert_eq!((asked("first").await, asked("second").await), (200, 401));
    file.replace(&text("second"));
    assert_eq!(
        status(gateway.gateway.addr(), "POST /reload", "first").await,
        200
    );
    assert_eq!((asked("first").await, asked("second").await), (401, 200));
}

#[tokio::test]
async fn policy_and_breaker_and_health_change_for_the_workers_that_are_there() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let text = |more: &str| {
        format!(
            "worker_urls: [{}]\n{more}",
            urls(&[&workers[0], &workers[1]])
        )
    };
    let file = ConfigFile::new(
        "policy",
        &text("policy: round_robin\nexplain_routing: true\n"),
    );
    let gateway = file.start().await;
    gateway.has_ready(2).await;
    let policy = || async {
        let reply = post(&gateway, "/generate", "{\"text\": \"a\"}").await;
        reply.header("x-smg-routed-policy").to_owned()
    };
    assert_eq!(policy().await, "round_robin");
    file.replace(&text(
        "policy: manual\nexplain_routing: true\nassignment_mode: min_load\n",
    ));
    assert_eq!(
        changed(&gateway).await,
        value!(["policy", "assignment_mode"])
    );
    assert_eq!(policy().await, "manual");
    let keyed = || async {
        let request = posting("/generate", "x-smg-routing-key: k\r\n", "{}");
        raw(&gateway, &request)
            .await
            .header("x-smg-routed-worker")
            .to_owned()
    };
    let home = keyed().await;
    // Other tunables of the same policy: the key stays where it is.
    file.replace(&text(
        "policy: manual\nexplain_routing: true\nassignment_mode: random\nmax_idle_secs: 60\n",
    ));
    assert_eq!(
        changed(&gateway).await,
        value!(["max_idle_secs", "assignment_mode"])
    );
    for _ in 0..8 {
        assert_eq!(keyed().await, home);
    }
}

#[tokio::test]
async fn breaker_and_health_change_for_the_workers_that_are_there() {
    let worker = Worker::doing(json(500, "{}")).await;
    let text = |more: &str| {
        let urls = urls(&[&worker]);
        format!("worker_urls: [{urls}]\ndisable_retries: true\n{more}")
    };
    let file = ConfigFile::new("breaker", &text(""));
    let gateway = file.start().await;
    gateway.has_ready(1).await;
    let fail = async || {
        let status = post(&gateway, "/generate", "{}").await.status;
        (status, circuit(&gateway, 0).await)
    };
    assert_eq!(fail().await, (500, "closed".to_owned()));
    file.replace(&text(
        "cb_failure_threshold: 2\ncb_timeout_duration_secs: 3600\n",
    ));
    reload(&gateway).await;
    assert_eq!(fail().await, (500, "open".to_owned()));
    file.replace(&text(
        "disable_circuit_breaker: true\nhealth_check_interval_secs: 1\n",
    ));
    reload(&gateway).await;
    for _ in 0..3 {
        assert_eq!(fail().await, (500, "closed".to_owned()));
    }
    let probes = || async {
        let metrics = gateway.metrics().await;
        let mut lines = metrics.lines();
        let line = lines
            .find(|it| it.starts_with("smg_worker_health_checks_total"))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let before = probes().await;
    until(|| async { probes().await >= before + 2.0 }).await;
}

#[tokio::test]
async fn watched_file_is_read_again_when_it_changes() {
    let file = ConfigFile::new("watch", "config_watch: true\nqueue_size: 7\n");
    let gateway = file.start().await;
    file.replace("config_watch: true\nqueue_size: 8\n");
    until(|| async { in_force(&gateway, "queue_size").await == 8 }).await;
    file.replace("config_watch: true\nqueue_size: nine\n");
    let failed = || async {
        let config = get(&gateway, "/debug/config").await.json();
        config["last_reload"]["result"] == "failed"
    };
    until(failed).await;
    assert_eq!(in_force(&gateway, "queue_size").await, 8);
    file.replace("config_watch: true\nqueue_size: 9\n");
    until(|| async { in_force(&gateway, "queue_size").await == 9 }).await;
}

#[tokio::test]
async fn program_that_asks_for_the_file_is_answered_by_the_log_and_by_the_page() {
    let file = ConfigFile::new("program", "queue_size: 7\n");
    let gateway = file.start().await;
    file.replace("queue_size: 8\n");
    assert!(gateway.gateway.reload_file());
    until(|| async { in_force(&gateway, "queue_size").await == 8 }).await;
}

#[tokio::test]
async fn wrong_file_is_refused_at_start() {
    let file = ConfigFile::new("start", "polisy: random\n");
    let error = Gateway::start(&file.options()).err().unwrap().to_string();
    assert!(
        error.contains(":1:1: unknown key 'polisy'; did you mean 'policy'?"),
        "{error}"
    );
}
