//! One worker after another: in the same slot, at the same address.

use std::sync::atomic::{AtomicUsize, Ordering};

use gateway::Gateway;
use serde_json::{Value, json as value};

use crate::support::{
    Client, Received, Running, Step, Worker, add, bare, get, json, ok, options, post, posting, raw,
    send, shown, start, start_with, until, until_gone, until_status,
};

#[tokio::test]
async fn a_request_in_flight_does_not_count_for_the_next_worker_in_its_slot() {
    let old = Worker::doing(vec![
        Step::Wait,
        Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()),
    ])
    .await;
    let new = Worker::doing(ok()).await;
    let mut options = options(&[&old]);
    options.worker_drain_timeout_secs = 0;
    let gateway = start_with(options).await;
    let list = get(&gateway, "/workers").await.json();
    let id = list["workers"][0]["id"].as_str().unwrap().to_owned();
    let mut client = Client::to(&gateway).await;
    client
        .send(b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    until(|| async { old.received().len() == 1 }).await;
    bare(&gateway, &format!("DELETE /workers/{id}")).await;
    until_gone(&gateway, &id).await;
    let newcomer = add(&gateway, &value!({"url": new.url()})).await;
    until_status(&gateway, &newcomer, "ready").await;
    let one = shown(&gateway, &newcomer).await;
    assert_eq!((&one["index"], &one["load"]), (&0.into(), &0.into()));
    // Decisions about the old one are not shown as decisions about the new one.
    let reply = get(&gateway, "/debug/decisions").await.json();
    assert_eq!(reply["decisions"][0]["worker"], Value::Null);
    old.go_on();
    assert_eq!(client.reply().await.status, 200);
    let one = shown(&gateway, &newcomer).await;
    assert_eq!((&one["load"], gateway.in_flight().await), (&0.into(), 0));
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
}

#[tokio::test]
async fn a_url_may_come_back_while_its_last_worker_still_leaves() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let worker = Worker::scripted(|_| {
        if ASKED.fetch_add(1, Ordering::SeqCst) == 0 {
            vec![Step::Wait]
        } else {
            ok()
        }
    })
    .await;
    let gateway = start(&[&worker]).await;
    let list = get(&gateway, "/workers").await.json();
    let old = list["workers"][0]["id"].as_str().unwrap().to_owned();
    let mut client = Client::to(&gateway).await;
    client
        .send(b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    until(|| async { worker.received().len() == 1 }).await;
    bare(&gateway, &format!("DELETE /workers/{old}")).await;
    let new = add(&gateway, &value!({"url": worker.url()})).await;
    assert_ne!(old, new);
    until_status(&gateway, &new, "ready").await;
    assert_eq!(shown(&gateway, &old).await["status"], "draining");
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    drop(client);
    until_gone(&gateway, &old).await;
    let (page, url) = (gateway.metrics().await, worker.url());
    let health = format!("smg_worker_health{{worker=\"{url}\"}} 1");
    assert!(page.contains(&health), "{page}");
    // Counted, not gauged: it is the newcomer's, and went on when the old one was forgotten.
    let outcomes = page.lines().filter(|line| {
        let counter = line.starts_with("smg_worker_cb_outcomes_total{");
        counter && line.contains(&url) && line.contains(r#"outcome="success""#)
    });
    let counted: Vec<u64> = outcomes
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(counted.len() == 1 && counted[0] >= 1, "{page}");
}

#[tokio::test]
async fn a_second_registration_before_the_worker_is_up_keeps_what_it_does_not_name() {
    let dead = Worker::doing(ok()).await;
    let (url, port) = (dead.url(), dead.port());
    dead.kill().await;
    let mut options = options(&[]);
    options.worker_urls = vec![url.clone()];
    options.api_key = Some("k".to_owned().into());
    let gateway = Running {
        gateway: Gateway::start(&options).unwrap(),
    };
    let ask = async |line: &str, body: &Value| {
        let body = body.to_string();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: g\r\nauthorization: Bearer k\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        raw(&gateway, (head + &body).as_bytes()).await
    };
    let spec = value!({"url": url, "priority": 3});
    let added = ask("POST /workers", &spec).await;
    assert_eq!(added.status, 202, "{}", added.text());
    let bare = value!({"url": url});
    assert_eq!(ask("POST /workers", &bare).await.status, 202);
    let alive = Worker::listening(port, |_| ok()).await;
    gateway.has_ready(1).await;
    // What it had from the start, the gateway's own key, it has still.
    assert_eq!(ask("POST /generate", &value!({})).await.status, 200);
    assert_eq!(alive.received()[0].all("authorization"), ["Bearer k"]);
    let list = ask("GET /workers", &value!({})).await.json();
    assert_eq!(list["workers"][0]["priority"], 3);
    // Once it is up, a request that changes nothing is accepted, too.
    assert_eq!(ask("POST /workers", &bare).await.status, 202);
    assert_eq!(ask("POST /workers", &spec).await.status, 202);
    let other = value!({"url": url, "api_key": "other"});
    assert_eq!(ask("POST /workers", &other).await.status, 409);
}

#[tokio::test]
async fn a_worker_is_known_however_its_url_is_spelt() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[]).await;
    let id = add(&gateway, &value!({"url": worker.url()})).await;
    until_status(&gateway, &id, "ready").await;
    let odd = format!("http://127.1:0{}/x/..", worker.port());
    assert_eq!(add(&gateway, &value!({"url": odd})).await, id);
    assert_eq!(shown(&gateway, &id).await["url"], worker.url());
    let lines = format!("x-smg-target-worker: {odd}\r\n");
    let aimed = raw(&gateway, &posting("/generate", &lines, "{}")).await;
    assert_eq!(aimed.status, 200);
    assert!(gateway.gateway.suspect(&odd));
    for (url, names) in [
        (format!("{}\n", worker.url()), "control"),
        (format!("{} ", worker.url()), "spaces"),
        (format!("http://me:s3cret@{}", &odd[7..]), "credentials"),
    ] {
        let spec = value!({"url": url});
        let reply = send(&gateway, "POST /workers", &spec).await;
        let text = reply.text();
        assert!(reply.status == 400 && text.contains(names), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert_eq!(get(&gateway, "/workers").await.json()["total"], 1);
    let gone = bare(&gateway, &format!("POST /remove_worker?url={odd}")).await;
    let said = format!("Successfully removed worker: {}", worker.url());
    assert_eq!((gone.status, gone.text()), (200, said));
}

/// Begins to change a worker; its body is waited for once this returns.
async fn begin_patch(gateway: &Running, id: &str, length: usize) -> Client {
    let mut client = Client::to(gateway).await;
    let head = format!(
        "PATCH /workers/{id} HTTP/1.1\r\nhost: g\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    client.send(head.as_bytes()).await;
    assert_eq!(client.reply().await.status, 100);
    client
}

#[tokio::test]
async fn a_worker_that_is_leaving_or_gone_is_not_changed() {
    let worker = Worker::doing(vec![Step::Wait]).await;
    let gateway = start(&[]).await;
    let id = add(&gateway, &value!({"url": worker.url()})).await;
    until_status(&gateway, &id, "ready").await;
    let body = r#"{"model_id":"ghost"}"#;
    let client = Client::asking(&gateway, "").await;
    until(|| async { worker.received().len() == 1 }).await;
    let mut early = begin_patch(&gateway, &id, body.len()).await;
    let mut late = begin_patch(&gateway, &id, body.len()).await;
    bare(&gateway, &format!("DELETE /workers/{id}")).await;
    early.send(body.as_bytes()).await;
    let reply = early.reply().await;
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (409, &"WORKER_DRAINING".into())
    );
    let by_url = worker.url().replace("://", "%3A%2F%2F").replace(':', "%3A");
    for name in [&id, &by_url] {
        assert_eq!(shown(&gateway, name).await["status"], "draining", "{name}");
    }
    drop(client);
    until_gone(&gateway, &id).await;
    assert_eq!(
        get(&gateway, &format!("/workers/{by_url}")).await.status,
        404
    );
    late.send(body.as_bytes()).await;
    let reply = late.reply().await;
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (404, &"WORKER_NOT_FOUND".into())
    );
    let page = gateway.metrics().await;
    assert!(!page.contains("ghost"), "{page}");
}

#[tokio::test]
async fn a_worker_replaced_by_its_own_view_keeps_its_settings() {
    static TURNED: AtomicUsize = AtomicUsize::new(0);
    let worker = Worker::listening(0, |request: &Received| {
        let now = TURNED.load(Ordering::SeqCst);
        match request.path() {
            "/health" if now == 1 => json(500, "{}"),
            "/server_info" if now == 0 => json(200, r#"{"model_id":"a","tp_size":1}"#),
            "/server_info" => json(200, r#"{"model_id":"b","tp_size":2}"#),
            "/model_info" => json(200, "{}"),
            _ => ok(),
        }
    })
    .await;
    let mut options = options(&[]);
    options.health_check_interval_secs = 1;
    options.health_failure_threshold = 1;
    options.health_success_threshold = 1;
    let gateway = start_with(options).await;
    let id = add(&gateway, &value!({"url": worker.url()})).await;
    until_status(&gateway, &id, "ready").await;
    let one = shown(&gateway, &id).await;
    assert_eq!(one["model_id"], "a");
    let put = send(&gateway, &format!("PUT /workers/{id}"), &one).await;
    assert_eq!(put.status, 202, "{}", put.text());
    TURNED.store(1, Ordering::SeqCst);
    until_status(&gateway, &id, "not_ready").await;
    TURNED.store(2, Ordering::SeqCst);
    until(|| async { shown(&gateway, &id).await["model_id"] == "b" }).await;
    assert_eq!(shown(&gateway, &id).await["labels"]["tp_size"], "2");
}
