//! Circuit breakers, passive health, outliers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::{
    Client, Received, Step, Worker, aimed, circuit, generate, get, json, ok, options, post, raw,
    start, start_with, touchy, until,
};

#[tokio::test]
async fn failures_open_it_and_then_the_answer_comes_at_once_with_a_time_to_come_back() {
    let worker = Worker::doing(json(500, "{}")).await;
    let (other, third) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let gateway = start_with(touchy(&[&worker, &other, &third])).await;
    for _ in 0..3 {
        assert_eq!(aimed(&gateway).await.status, 500);
    }
    assert_eq!(circuit(&gateway, 0).await, "open");
    let reply = aimed(&gateway).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "no_available_workers")
    );
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(worker.received().len(), 3);
    let url = worker.url();
    let metrics = gateway.metrics().await;
    for line in [
        format!("smg_worker_cb_state{{worker=\"{url}\"}} 1"),
        format!("smg_worker_cb_outcomes_total{{outcome=\"failure\",worker=\"{url}\"}} 3"),
        format!(
            "smg_worker_cb_transitions_total{{from=\"closed\",to=\"open\",worker=\"{url}\"}} 1"
        ),
        format!("smg_worker_health{{worker=\"{url}\"}} 1"),
    ] {
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn half_open_takes_one_trial_at_a_time_and_closes_after_enough() {
    let well = Arc::new(AtomicBool::new(false));
    let answers = Arc::clone(&well);
    let worker = Worker::scripted(move |_| {
        if answers.load(Ordering::SeqCst) {
            [vec![Step::Wait], ok()].concat()
        } else {
            json(500, "{}")
        }
    })
    .await;
    let (other, third) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let gateway = start_with(touchy(&[&worker, &other, &third])).await;
    for _ in 0..3 {
        aimed(&gateway).await;
    }
    well.store(true, Ordering::SeqCst);
    until(|| async { circuit(&gateway, 0).await == "half_open" }).await;
    for trial in 0..2 {
        let mut first = Client::asking(&gateway, "x-smg-target-worker: 0\r\n").await;
        until(|| async { worker.received().len() == 4 + trial }).await;
        // During its trial no other request gets through.
        assert_eq!(aimed(&gateway).await.status, 503);
        worker.go_on();
        assert_eq!(first.reply().await.status, 200);
    }
    assert_eq!(circuit(&gateway, 0).await, "closed");
}

#[tokio::test]
async fn client_errors_and_full_queues_never_open_it() {
    let refusals = [
        json(400, "{}"),
        json(404, "{}"),
        json(422, "{}"),
        json(429, "{}"),
        json(503, r#"{"error":{"message":"The request queue is full."}}"#),
        vec![Step::Send(
            b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n".to_vec(),
        )],
    ];
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let worker = Worker::scripted(move |_| {
        refusals[turn.fetch_add(1, Ordering::SeqCst) % refusals.len()].clone()
    })
    .await;
    let gateway = start_with(touchy(&[&worker])).await;
    for _ in 0..60 {
        post(&gateway, "/generate", "{}").await;
    }
    assert_eq!(worker.received().len(), 60);
    assert_eq!(circuit(&gateway, 0).await, "closed");
    assert!(
        !gateway
            .metrics()
            .await
            .contains("smg_worker_cb_transitions_total{")
    );
}

#[tokio::test]
async fn streams_that_break_off_open_it() {
    let half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n".to_vec();
    let worker = Worker::doing(vec![Step::Send(half), Step::Close]).await;
    let gateway = start_with(touchy(&[&worker])).await;
    for _ in 0..3 {
        assert!(!post(&gateway, "/generate", "{}").await.whole);
    }
    assert_eq!(circuit(&gateway, 0).await, "open");
}

#[tokio::test]
async fn clients_that_leave_never_open_it() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let gateway = start_with(touchy(&[&worker])).await;
    for count in 1..=5 {
        let client = Client::asking(&gateway, "").await;
        until(|| async { worker.received().len() == count }).await;
        drop(client);
        until(|| async { worker.disconnects() == count }).await;
    }
    assert_eq!(circuit(&gateway, 0).await, "closed");
}

#[tokio::test]
async fn switched_off_it_never_opens() {
    let worker = Worker::doing(json(500, "{}")).await;
    let mut options = touchy(&[&worker]);
    options.disable_circuit_breaker = true;
    let gateway = start_with(options).await;
    for _ in 0..20 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 500);
    }
}

#[tokio::test]
async fn a_dead_worker_is_out_after_the_first_refused_connection() {
    let (dead, good) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let gateway = start(&[&dead, &good]).await;
    drop(dead);
    // Round robin would meet it every second time.
    for _ in 0..2 {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
    gateway.has_ready(1).await;
    let workers = get(&gateway, "/workers").await.json();
    assert_eq!(workers["workers"][0]["status"], "not_ready");
    let decisions = || async {
        let decisions = get(&gateway, "/debug/decisions?limit=1000").await.json();
        decisions["decisions"].as_array().unwrap().len()
    };
    let before = decisions().await;
    for _ in 0..10 {
        post(&gateway, "/generate", "{}").await;
    }
    assert_eq!(
        decisions().await,
        before + 10,
        "nothing was tried there again"
    );
}

#[tokio::test]
async fn a_worker_that_comes_back_serves_again_long_before_the_next_interval() {
    let (dead, good) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let port = dead.port();
    let gateway = start(&[&dead, &good]).await;
    drop(dead);
    let ready = |count: usize| {
        let gateway = &gateway;
        async move {
            let wanted = format!("\"healthy_workers\":{count}");
            get(gateway, "/readiness").await.text().contains(&wanted)
        }
    };
    for _ in 0..2 {
        post(&gateway, "/generate", "{}").await;
    }
    until(|| ready(1)).await;
    let _back = Worker::listening(port, |_| ok()).await;
    let returned = Instant::now();
    until(|| ready(2)).await;
    assert!(
        returned.elapsed() < Duration::from_secs(5),
        "the interval is 60 s"
    );
}

#[tokio::test]
async fn one_lost_connection_of_the_only_worker_refuses_no_request() {
    let worker = Worker::scripted(|request| {
        if request.all("x-lose").is_empty() {
            ok()
        } else {
            vec![Step::Reset]
        }
    })
    .await;
    let mut options = options(&[&worker]);
    options.disable_retries = true;
    let gateway = start_with(options).await;
    for _ in 0..5 {
        let mut client = Client::asking(&gateway, "x-lose: 1\r\n").await;
        assert_eq!(client.reply().await.status, 502);
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    }
}

#[tokio::test]
async fn a_worker_that_hangs_up_on_everybody_is_to_blame_a_request_on_which_all_hang_up_is() {
    let hangs_up = |request: &Received| !request.all("x-poison").is_empty();
    let mut workers = Vec::new();
    for index in 0..3 {
        workers.push(
            Worker::scripted(move |request| {
                let broken = index == 0 && !request.all("x-break").is_empty();
                if broken || hangs_up(request) {
                    vec![Step::Close]
                } else {
                    ok()
                }
            })
            .await,
        );
    }
    let mut options = touchy(&[&workers[0], &workers[1], &workers[2]]);
    options.disable_retries = false;
    options.retry_initial_backoff_ms = 1;
    options.retry_budget_ratio = 100.0;
    let gateway = start_with(options).await;
    let ask = async |header: &str| {
        let request = generate(&format!("{header}: 1\r\n"));
        raw(&gateway, &request).await.status
    };
    for _ in 0..10 {
        assert_eq!(ask("x-poison").await, 502);
    }
    for index in 0..3 {
        assert_eq!(circuit(&gateway, index).await, "closed");
    }
    for _ in 0..9 {
        assert_eq!(ask("x-break").await, 200);
    }
    assert_eq!(circuit(&gateway, 0).await, "open");
}

#[tokio::test]
async fn a_worker_that_has_too_much_to_do_is_asked_less() {
    let full = json(503, r#"{"message":"The request queue is full."}"#);
    let (busy, other) = (Worker::doing(full).await, Worker::doing(ok()).await);
    let mut options = options(&[&busy, &other]);
    // What refuses at once has the least load.
    options.policy = routing::PolicyKind::LeastLoad;
    options.retry_budget_ratio = 0.0;
    options.retry_budget_min_per_sec = 50;
    let gateway = start_with(options).await;
    let (started, mut asked) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_millis(500) {
        assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
        asked += 1;
    }
    let refused = busy.received().len();
    assert!((1..12).contains(&refused), "{refused} of {asked}");
    assert_eq!(circuit(&gateway, 0).await, "closed");
}

#[tokio::test]
async fn a_worker_that_comes_back_is_not_blamed_for_what_died_with_it() {
    let half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n".to_vec();
    let script = move |request: &Received| {
        if request.all("x-stay").is_empty() {
            ok()
        } else {
            vec![Step::Send(half.clone()), Step::Hang]
        }
    };
    let worker = Worker::listening(0, script.clone()).await;
    let port = worker.port();
    let gateway = start(&[&worker]).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut client = Client::asking(&gateway, "x-stay: 1\r\n").await;
        client.read_until("x").await;
        streams.push(client);
    }
    worker.kill().await;
    until(|| async { circuit(&gateway, 0).await == "open" }).await;
    let _back = Worker::listening(port, script).await;
    until(|| async { post(&gateway, "/generate", "{}").await.status == 200 }).await;
    assert_eq!(circuit(&gateway, 0).await, "closed");
}

#[tokio::test]
async fn a_request_at_a_worker_found_unreachable_is_tried_elsewhere() {
    let frozen = Arc::new(AtomicBool::new(false));
    let hangs = Arc::clone(&frozen);
    let ice = Worker::listening(0, move |_| {
        if hangs.load(Ordering::SeqCst) {
            vec![Step::Hang]
        } else {
            json(200, "{}")
        }
    })
    .await;
    let other = Worker::doing(ok()).await;
    let mut options = options(&[&ice, &other]);
    options.health_check_timeout_secs = 1;
    options.health_failure_threshold = 1;
    let gateway = start_with(options).await;
    frozen.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let replies = tokio::join!(
        post(&gateway, "/generate", "{}"),
        post(&gateway, "/generate", "{}")
    );
    assert_eq!((replies.0.status, replies.1.status), (200, 200));
    assert_eq!(other.received().len(), 2);
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "the request timeout is 1800 s"
    );
}
