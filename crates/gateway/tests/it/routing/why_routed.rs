//! Every decision can be explained: on its reply, afterwards, or without sending anything.

use crate::support::{
    Client, Running, Step, Worker, get, json, ok, options, post, posting, raw, start_with, until,
};

async fn cache_aware(workers: &[&Worker]) -> Running {
    let mut options = options(workers);
    options.policy = routing::PolicyKind::CacheAware;
    start_with(options).await
}

fn chat(text: &str) -> String {
    format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#,
        text.repeat(200)
    )
}

async fn explained(gateway: &Running, body: &str, lines: &str) -> crate::support::Reply {
    raw(gateway, &posting("/v1/chat/completions", lines, body)).await
}

#[tokio::test]
async fn a_prefix_stays_with_its_worker_and_the_reply_says_why() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = cache_aware(&[&workers[0], &workers[1]]).await;
    let first = explained(&gateway, &chat("hello "), "x-smg-explain: 1\r\n").await;
    assert_eq!(first.header("x-smg-matched-tokens"), "0");
    assert_eq!(first.header("x-smg-routed-policy"), "cache_aware");
    let home = first.header("x-smg-routed-worker").to_owned();
    assert!(!first.header("x-smg-runner-up").starts_with(&home));
    for _ in 0..5 {
        let again = explained(&gateway, &chat("hello "), "x-smg-explain: 1\r\n").await;
        assert_eq!(again.header("x-smg-routed-worker"), home);
        assert_eq!(
            again.header("x-smg-routed-worker-id"),
            first.header("x-smg-routed-worker-id")
        );
        let number = |name| again.header(name).parse::<u64>().unwrap();
        assert!(number("x-smg-matched-tokens") > 250 && number("x-smg-new-tokens") < 32);
    }
    let plain = explained(&gateway, &chat("hello "), "").await;
    assert_eq!(plain.header("x-smg-routed-worker-id").len(), 36);
    assert!(plain.all("x-smg-matched-tokens").is_empty());
}

#[tokio::test]
async fn the_last_decisions_are_kept() {
    let worker = Worker::doing(ok()).await;
    let gateway = cache_aware(&[&worker]).await;
    for text in ["one ", "two ", "one "] {
        post(&gateway, "/v1/chat/completions", &chat(text)).await;
    }
    let page = get(&gateway, "/debug/decisions?limit=2").await.json();
    let decisions = page["decisions"].as_array().unwrap();
    assert_eq!(
        (decisions.len(), &page["policy"]),
        (2, &"cache_aware".into())
    );
    assert_eq!(decisions[0]["worker"], worker.url());
    assert_eq!(decisions[0]["endpoint"], "chat");
    assert!(decisions[0]["matched_tokens"].as_u64() > Some(150));
    assert_eq!(
        decisions[1]["matched_tokens"].as_u64().unwrap() / 16,
        0,
        "only the common head"
    );
}

#[tokio::test]
async fn a_dry_run_ranks_and_sends_nothing() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = cache_aware(&[&workers[0], &workers[1]]).await;
    let home = explained(&gateway, &chat("hi "), "x-smg-explain: 1\r\n").await;
    for _ in 0..2 {
        let page = post(&gateway, "/route/explain", &chat("hi ")).await.json();
        let candidates = page["candidates"].as_array().unwrap();
        assert_eq!(candidates[0]["worker"], home.header("x-smg-routed-worker"));
        assert!(candidates[0]["cost"].as_f64() < candidates[1]["cost"].as_f64());
        assert_eq!(candidates[1]["matched_tokens"], 0);
        assert_eq!(page["endpoint"], "/v1/chat/completions");
    }
    assert_eq!(workers[0].received().len() + workers[1].received().len(), 1);
    assert_eq!(post(&gateway, "/route/explain", "{").await.status, 400);
}

#[tokio::test]
async fn a_target_worker_is_honoured_by_index_url_and_id() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = cache_aware(&[&workers[0], &workers[1]]).await;
    let id = get(&gateway, "/workers").await.json()["workers"][1]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for target in ["1".to_owned(), workers[1].url(), id] {
        let line = format!("x-smg-target-worker: {target}\r\n");
        let reply = explained(&gateway, "{}", &line).await;
        assert_eq!(reply.status, 200, "{target}");
    }
    assert_eq!(
        (workers[0].received().len(), workers[1].received().len()),
        (0, 3)
    );
    let reply = explained(&gateway, "{}", "x-smg-target-worker: 7\r\n").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "no_available_workers")
    );
}

#[tokio::test]
async fn queued_prompts_count_until_the_first_byte() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
    let worker = Worker::doing(vec![
        Step::Wait,
        Step::Send(head.into()),
        Step::Wait,
        Step::Close,
    ])
    .await;
    let gateway = cache_aware(&[&worker]).await;
    let queued = || async {
        let page = post(&gateway, "/route/explain", &chat("other "))
            .await
            .json();
        page["candidates"][0]["queued_tokens"].as_u64().unwrap()
    };
    let mut client = Client::to(&gateway).await;
    let request = posting("/v1/chat/completions", "", &chat("hello "));
    client.send(&request).await;
    until(|| async { worker.received().len() == 1 }).await;
    assert!(queued().await > 250);
    worker.go_on();
    client.read_until("hi").await;
    until(|| async { queued().await == 0 }).await;
    assert_eq!(gateway.in_flight().await, 1);
    drop(client);
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn the_index_believes_in_no_more_than_the_workers_hold() {
    // 256 tokens are 1 kB of prompts: about five of these.
    let worker = Worker::listening(0, |request| match request.path() {
        "/server_info" => json(200, r#"{"model_path":"/m","max_total_num_tokens":256}"#),
        _ => ok(),
    })
    .await;
    let gateway = cache_aware(&[&worker]).await;
    for n in 0..20 {
        let body = format!(r#"{{"text":"{n}{}"}}"#, "x".repeat(200));
        assert_eq!(post(&gateway, "/generate", &body).await.status, 200);
    }
    let matched = |n: usize| {
        let body = format!(r#"{{"text":"{n}{}"}}"#, "x".repeat(200));
        let gateway = &gateway;
        async move {
            let page = post(gateway, "/route/explain", &body).await.json();
            page["candidates"][0]["matched_tokens"].as_u64().unwrap()
        }
    };
    assert!(matched(19).await > 0);
    assert_eq!(matched(0).await, 0);
}

#[tokio::test]
async fn a_flushed_worker_is_believed_to_hold_nothing() {
    let worker = Worker::doing(ok()).await;
    let gateway = cache_aware(&[&worker]).await;
    post(&gateway, "/v1/chat/completions", &chat("hi ")).await;
    let matched = || async {
        let page = post(&gateway, "/route/explain", &chat("hi ")).await.json();
        page["candidates"][0]["matched_tokens"].as_u64().unwrap()
    };
    assert!(matched().await > 100);
    assert_eq!(post(&gateway, "/flush_cache", "").await.status, 200);
    assert_eq!(matched().await, 0);
}

#[tokio::test]
async fn a_worker_that_was_away_is_believed_to_hold_nothing() {
    let sick = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let state = std::sync::Arc::clone(&sick);
    let worker = Worker::listening(0, move |request| {
        let failing = state.load(std::sync::atomic::Ordering::SeqCst);
        if failing && request.path() == "/health" {
            json(500, "{}")
        } else {
            ok()
        }
    })
    .await;
    let mut options = options(&[&worker]);
    options.policy = routing::PolicyKind::CacheAware;
    options.health_check_interval_secs = 1;
    options.health_failure_threshold = 1;
    options.health_success_threshold = 1;
    let gateway = start_with(options).await;
    post(&gateway, "/v1/chat/completions", &chat("hi ")).await;
    let ready = |wanted: u16| {
        let gateway = &gateway;
        until(move || async move { get(gateway, "/readiness").await.status == wanted })
    };
    sick.store(true, std::sync::atomic::Ordering::SeqCst);
    ready(503).await;
    sick.store(false, std::sync::atomic::Ordering::SeqCst);
    ready(200).await;
    let page = post(&gateway, "/route/explain", &chat("hi ")).await.json();
    assert_eq!(page["candidates"][0]["matched_tokens"], 0);
}
