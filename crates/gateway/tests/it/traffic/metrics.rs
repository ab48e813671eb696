//! What the metrics page says of requests.

use std::collections::BTreeSet;

use routing::PolicyKind;
use serde_json::json as value;
use sim::{SimOptions, SimWorker};

use crate::support::{
    Client, Reply, Running, Step, Worker, add, bare, chat_stream, generate, json, ok, options,
    post, posting, raw, start, start_with, until, until_gone,
};

/// The value of a sample; `labels` as on the page, in alphabetical order.
async fn sample(gateway: &Running, name: &str, labels: &str) -> Option<f64> {
    let page = gateway.metrics().await;
    let start = format!("{name}{{{labels}}} ");
    let mut lines = page.lines();
    lines.find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

/// The sum of a series of whole numbers over all labels.
async fn sum(gateway: &Running, name: &str) -> u64 {
    let page = gateway.metrics().await;
    let samples = page.lines().filter(|line| line.starts_with(name));
    let values = samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
    values.sum()
}

/// Samples on the page.
async fn count(gateway: &Running) -> usize {
    let page = gateway.metrics().await;
    page.lines().filter(|line| !line.starts_with('#')).count()
}

/// A stream in which each of these comes as a chunk of its own, after a `go_on` each but the first.
fn stream(chunks: &[&str]) -> Vec<Step> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut steps = vec![Step::Send(head.into())];
    for (at, chunk) in chunks.iter().enumerate() {
        if at > 0 {
            steps.push(Step::Wait);
        }
        steps.push(Step::Send(
            format!("{:x}\r\n{chunk}\r\n", chunk.len()).into(),
        ));
    }
    steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
    steps
}

const CHAT: &str =
    r#"backend_type="regular",endpoint="chat",model="test-model",router_type="http""#;

#[tokio::test]
async fn stream_is_measured_by_its_events_and_its_usage() {
    let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":30}}}"#;
    let last = format!("{usage}\n\ndata: [DONE]\n\n");
    let chunks = [": busy\n\n", "data: 1\n\n", "data: 2\n\ndata: 3\n\n", &last];
    let worker = Worker::doing(stream(&chunks)).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.read_until(": busy").await;
    let ttft = "smg_router_ttft_seconds_count";
    assert_eq!(
        sample(&gateway, ttft, CHAT).await,
        None,
        "a comment is no event"
    );
    worker.go_on();
    client.read_until("data: 1").await;
    assert_eq!(sample(&gateway, ttft, CHAT).await, Some(1.0));
    let generation = "smg_router_generation_duration_seconds_count";
    assert_eq!(sample(&gateway, generation, CHAT).await, Some(0.0));
    worker.go_on();
    client.read_until("data: 3").await;
    worker.go_on();
    assert!(client.reply().await.whole);
    for (name, value) in [
        (generation, 1.0),
        ("smg_router_tpot_seconds_count", 1.0),
        (ttft, 1.0),
    ] {
        assert_eq!(sample(&gateway, name, CHAT).await, Some(value), "{name}");
    }
    for (name, labels, value) in [
        ("smg_router_tokens_total", r#",token_type="input""#, 40.0),
        ("smg_router_tokens_total", r#",token_type="output""#, 3.0),
    ] {
        let found = sample(&gateway, name, &format!("{CHAT}{labels}")).await;
        assert_eq!(found, Some(value), "{name} {labels}");
    }
    let duration = "smg_router_request_duration_seconds_count";
    assert_eq!(sum(&gateway, duration).await, 1);
}

#[tokio::test]
async fn events_stand_for_tokens_of_a_stream_without_usage() {
    let worker = Worker::doing(stream(&["data: 1\n\ndata: 2\n\n", "data: [DONE]\n\n"])).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.read_until("data: 2").await;
    worker.go_on();
    assert!(client.reply().await.whole);
    let tpot = sample(&gateway, "smg_router_tpot_seconds_count", CHAT).await;
    assert_eq!(tpot, Some(1.0));
    assert_eq!(sum(&gateway, "smg_router_tokens_total").await, 0);
}

#[tokio::test]
async fn stream_that_breaks_off_counts_as_no_generation() {
    let mut steps = stream(&["data: 1\n\n"]);
    steps.pop();
    steps.push(Step::Close);
    let worker = Worker::doing(steps).await;
    let gateway = start(&[&worker]).await;
    let mut client = Client::to(&gateway).await;
    client.send(&chat_stream()).await;
    client.reply().await;
    let name = "smg_router_generation_duration_seconds_count";
    assert_eq!(sample(&gateway, name, CHAT).await, Some(0.0));
    let labels = r#"connection_mode="http",error_type="stream_error",worker_type="regular""#;
    let cut = sample(&gateway, "smg_worker_errors_total", labels).await;
    assert_eq!(cut, Some(1.0));
}

#[tokio::test]
async fn predicted_cached_tokens_are_counted_beside_those_that_a_reply_reports() {
    let reply = r#"{"text":"","meta_info":{"prompt_tokens":900,"completion_tokens":1,"cached_tokens":450}}"#;
    let worker = Worker::doing(json(200, reply)).await;
    let mut options = options(&[&worker]);
    options.policy = PolicyKind::CacheAware;
    let gateway = start_with(options).await;
    let body = value!({"text": "the same words ".repeat(200)}).to_string();
    for _ in 0..2 {
        assert_eq!(post(&gateway, "/generate", &body).await.status, 200);
    }
    let cached = async |source| {
        let labels = format!(
            r#"backend_type="regular",endpoint="generate",model="test-model",router_type="http",source="{source}""#
        );
        sample(&gateway, "smg_router_cached_tokens_total", &labels).await
    };
    assert_eq!(cached("reported").await, Some(900.0));
    // The second prompt alone was known.
    let predicted = cached("predicted").await.unwrap();
    assert!((500.0..1500.0).contains(&predicted), "{predicted}");
    assert!(sum(&gateway, "smg_cache_aware_index_bytes").await > 0);
    assert_eq!(sum(&gateway, "smg_router_ttft").await, 0, "nothing streams");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_tokens_are_read_from_long_replies() {
    let worker = SimWorker::start(SimOptions {
        decode_step_base_ms: 0.1,
        ..SimOptions::default()
    })
    .unwrap();
    let mut options = options(&[]);
    options.worker_urls = vec![worker.url()];
    let gateway = start_with(options).await;
    let mut cached = 0;
    for rest in [
        value!({}),
        value!({"return_logprob": true}),
        value!({"stream": true}),
    ] {
        let sampling = value!({"max_new_tokens": 1000});
        let mut body = value!({"text": "the same words ".repeat(200), "sampling_params": sampling});
        body.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        let reply = post(&gateway, "/generate", &body.to_string()).await;
        let reply = reply.text();
        assert!(reply.len() > 4 * 1024, "{}", reply.len());
        let (_, last) = reply.rsplit_once("\"cached_tokens\":").unwrap();
        let (count, _) = last.split_once([',', '}']).unwrap();
        cached += count.parse::<u64>().unwrap();
        let labels = r#"backend_type="regular",endpoint="generate",model="sim-model",router_type="http",source="reported""#;
        let counted = sample(&gateway, "smg_router_cached_tokens_total", labels).await;
        assert_eq!(counted, Some(cached as f64), "{rest}");
    }
    assert!(cached > 500, "{cached}");
}

#[tokio::test]
async fn requests_in_flight_are_counted_by_age_key_and_tokens() {
    let worker = Worker::doing(vec![Step::Hang]).await;
    let gateway = start(&[&worker]).await;
    let keys = "smg_worker_routing_keys_active";
    let at = format!("worker=\"{}\"", worker.url());
    assert_eq!(sample(&gateway, keys, &at).await, None);
    let mut clients = Vec::new();
    for key in ["a", "b", "a"] {
        let lines = format!("x-smg-routing-key: {key}\r\n");
        clients.push(Client::asking(&gateway, &lines).await);
    }
    until(|| async { gateway.in_flight().await == 3 }).await;
    assert_eq!(sample(&gateway, keys, &at).await, Some(2.0));
    let ages = "smg_http_inflight_request_age_count";
    assert_eq!(sample(&gateway, ages, r#"gt="0",le="30""#).await, Some(3.0));
    drop(clients);
    until(|| async { gateway.in_flight().await == 0 }).await;
    assert_eq!(sample(&gateway, keys, &at).await, Some(0.0));
    until(|| async { sum(&gateway, ages).await == 0 }).await;
}

#[tokio::test]
async fn reloads_are_counted_with_their_result() {
    let worker = Worker::doing(ok()).await;
    let options = options(&[&worker]);
    let gateway = start_with(options.clone()).await;
    gateway.gateway.reload(&options).unwrap();
    let other = gateway::Options {
        model_matching: gateway::config::ModelMatching::Any,
        ..options
    };
    gateway.gateway.reload(&other).unwrap_err();
    for result in ["success", "failed"] {
        let labels = format!("result=\"{result}\"");
        let counted = sample(&gateway, "smg_config_reloads_total", &labels).await;
        assert_eq!(counted, Some(1.0), "{result}");
    }
}

#[tokio::test]
async fn idle_gateway_shows_few_samples_and_those_of_a_worker_go_with_it() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[]).await;
    let idle = count(&gateway).await;
    assert!(idle < 200, "{}", gateway.metrics().await);
    let id = add(&gateway, &value!({"url": worker.url()})).await;
    gateway.has_ready(1).await;
    let lines = "x-smg-routing-key: a\r\n";
    assert_eq!(raw(&gateway, &generate(lines)).await.status, 200);
    assert!(gateway.metrics().await.contains("test-model"));
    bare(&gateway, &format!("DELETE /workers/{id}")).await;
    until_gone(&gateway, &id).await;
    // The task that probed it may be the last to let its series go.
    until(|| async {
        let page = gateway.metrics().await;
        !page.contains(&worker.url()) && !page.contains("test-model")
    })
    .await;
}

/// Sends a request on a connection that stays.
async fn ask(client: &mut Client, request: &str) -> Reply {
    client.send(request.as_bytes()).await;
    client.reply().await
}

fn post_with(lines: &str, path: &str, body: &str) -> String {
    String::from_utf8(posting(path, lines, body)).unwrap()
}

#[tokio::test]
async fn clients_cannot_add_series_without_end() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    options.policy = PolicyKind::Manual;
    let gateway = start_with(options).await;
    let mut client = Client::to(&gateway).await;
    let mut names = BTreeSet::new();
    let mut after_one_round = 0;
    for number in 0..2500_u64 {
        // Any name, always the same ones (Knuth's multiplicative hash).
        let name = format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let model = post_with(
            "",
            "/v1/chat/completions",
            &format!(r#"{{"model":"{name}"}}"#),
        );
        let key = format!("x-smg-routing-key: {name}\r\nauthorization: Bearer {name}\r\n");
        let statuses = [
            ask(
                &mut client,
                &format!("GET /{name} HTTP/1.1\r\nhost: g\r\n\r\n"),
            )
            .await
            .status,
            ask(
                &mut client,
                &format!("GET /workers/{name} HTTP/1.1\r\nhost: g\r\n\r\n"),
            )
            .await
            .status,
            ask(&mut client, &model).await.status,
            ask(&mut client, &post_with(&key, "/generate", "{}"))
                .await
                .status,
        ];
        assert_eq!(
            (statuses[0], statuses[1], statuses[3]),
            (404, 400, 200),
            "{name}"
        );
        names.insert(name);
        if number == 0 {
            after_one_round = count(&gateway).await;
        }
    }
    let page = gateway.metrics().await;
    assert_eq!(names.len(), 2500);
    assert!(!names.iter().any(|name| page.contains(name)), "{page}");
    assert!(count(&gateway).await <= after_one_round + 2, "{page}");
}
