//! The spans of requests, and what workers learn of them.

use gateway::Options;
use serde_json::json;

use super::collector::Collector;
use crate::pairs::stage::{asked, pair_options};
use crate::support::{
    Client, Received, Step, Worker, get, json as answer, ok, post, posting, raw, start_with, until,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

/// The head lines of a client that traces.
fn lines() -> String {
    format!("traceparent: 00-{TRACE}-{CLIENT}-01\r\ntracestate: a=b,c=d\r\nx-request-id: mine\r\n")
}

/// The trace and span that a worker was named.
fn parent(request: &Received) -> (String, String) {
    let sent = request.all("traceparent");
    assert_eq!(sent.len(), 1, "{}", request.head);
    let fields: Vec<_> = sent[0].split('-').collect();
    assert_eq!((fields.len(), fields[0], fields[3]), (4, "00", "01"));
    (fields[1].to_owned(), fields[2].to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_of_a_client_goes_on_to_the_worker() {
    let worker = Worker::doing(ok()).await;
    let collector = Collector::start().await;
    let gateway = start_with(collector.options(&[&worker])).await;
    let request = posting("/generate", &lines(), "{}");
    assert_eq!(raw(&gateway, &request).await.status, 200);
    let [request, attempt] = collector.spans(TRACE).await;
    let seen = (request.name.as_str(), request.parent.as_str());
    assert_eq!(seen, ("POST /generate", CLIENT));
    assert_eq!(attempt.parent, request.id);
    assert_eq!((request.is_server, attempt.is_server), (true, false));
    let received = worker.received();
    assert_eq!(parent(&received[0]), (TRACE.to_owned(), attempt.id.clone()));
    assert_eq!(received[0].all("tracestate"), ["a=b,c=d"]);
    for span in [&request, &attempt] {
        assert_eq!((span.state.as_str(), &span.error), ("a=b,c=d", &None));
        assert!(request.start <= span.start && span.start <= span.end);
    }
    assert_eq!(request.events, ["first_byte"]);
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "smg");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_say_what_was_decided_and_what_came_of_it() {
    let usage = r#"{"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":6}}}"#;
    let worker = Worker::doing(answer(200, usage)).await;
    let collector = Collector::start().await;
    let gateway = start_with(collector.options(&[&worker])).await;
    let request = posting("/v1/completions?key=secret", &lines(), "{}");
    assert_eq!(raw(&gateway, &request).await.status, 200);
    let [request, attempt] = collector.spans(TRACE).await;
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/completions")),
        ("url.path", json!("/v1/completions")),
        ("http.response.status_code", json!(200)),
        ("smg.request_id", json!("mine")),
        ("smg.key", json!("anonymous")),
        ("gen_ai.request.model", json!("test-model")),
        ("smg.worker", json!(worker.url())),
        ("smg.policy", json!("round_robin")),
        ("smg.attempts", json!(1)),
        ("smg.stream", json!(false)),
        ("gen_ai.usage.input_tokens", json!(9)),
        ("gen_ai.usage.cache_read.input_tokens", json!(6)),
        ("gen_ai.usage.output_tokens", json!(4)),
        ("error.type", json!(null)),
    ] {
        assert_eq!(request.get(name), value, "{name}");
    }
    for (name, value) in [
        ("http.response.status_code", json!(200)),
        ("server.address", json!("127.0.0.1")),
        ("server.port", json!(worker.port())),
        ("smg.worker", json!(worker.url())),
        ("smg.worker_type", json!("regular")),
        ("smg.policy", json!("round_robin")),
        ("smg.matched_tokens", json!(0)),
        ("smg.worker.requests", json!(0)),
        ("error.type", json!(null)),
    ] {
        assert_eq!(attempt.get(name), value, "{name}");
    }
    for name in ["smg.queue.duration", "smg.time_to_first_byte"] {
        assert!(request.get(name).as_f64().unwrap() >= 0.0, "{name}");
    }
    assert!(attempt.get("smg.time_to_answer").as_f64().unwrap() > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_is_a_span_of_its_own() {
    let broken = Worker::doing(answer(500, "{}")).await;
    let worker = Worker::doing(ok()).await;
    let collector = Collector::start().await;
    let gateway = start_with(collector.options(&[&broken, &worker])).await;
    for turn in 0..2 {
        let request = posting("/generate", &lines(), r#"{"text":"a"}"#);
        assert_eq!(raw(&gateway, &request).await.status, 200, "{turn}");
    }
    let attempts = broken.received().len() + worker.received().len();
    until(|| async { collector.all().len() == 2 + attempts }).await;
    let spans = collector.all();
    let failed = spans.iter().find(|span| span.error.is_some()).unwrap();
    assert_eq!(failed.error.as_deref(), Some("500"));
    assert_eq!(
        (
            failed.get("error.type"),
            failed.get("http.response.status_code")
        ),
        (json!("500"), json!(500))
    );
    let at_broken = parent(&broken.received()[0]);
    assert_eq!(at_broken, (TRACE.to_owned(), failed.id.clone()));
    let again = spans
        .iter()
        .find(|span| span.parent == failed.parent && span.get("http.request.resend_count") == 1);
    let again = again.unwrap();
    assert!(failed.end <= again.start);
    let named: Vec<_> = worker.received().iter().map(parent).collect();
    assert!(
        named.contains(&(TRACE.to_owned(), again.id.clone())),
        "{named:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn both_legs_of_a_pair_are_spans_below_the_request() {
    let (prefill, decode) = (Worker::doing(ok()).await, Worker::doing(ok()).await);
    let collector = Collector::start().await;
    let options = Options {
        worker_urls: Vec::new(),
        ..collector.options(&[])
    };
    let gateway = start_with(Options {
        enable_trace: true,
        otlp_traces_endpoint: options.otlp_traces_endpoint,
        ..pair_options(&[&prefill], &[&decode])
    })
    .await;
    let request = posting("/generate", &lines(), r#"{"text":"a"}"#);
    assert_eq!(raw(&gateway, &request).await.status, 200);
    let [request, first, second] = collector.spans(TRACE).await;
    for (worker, worker_type) in [(&prefill, "prefill"), (&decode, "decode")] {
        let leg = [&first, &second]
            .into_iter()
            .find(|span| span.get("smg.worker_type") == worker_type);
        let leg = leg.unwrap();
        assert_eq!(leg.parent, request.id);
        assert_eq!(leg.get("smg.worker"), worker.url());
        assert_eq!(leg.get("http.response.status_code"), 200);
        assert_eq!(
            parent(&asked(worker)[0]),
            (TRACE.to_owned(), leg.id.clone())
        );
    }
    assert_eq!(request.get("smg.prefill"), prefill.url());
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_that_breaks_off_and_client_that_leaves_show_in_both_spans() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let begun = Step::Send(format!("{head}9\r\ndata: 1\n\n\r\n").into_bytes());
    let worker = Worker::scripted(move |request| {
        let then = if request.path() == "/generate" {
            Step::Close
        } else {
            Step::Hang
        };
        vec![begun.clone(), then]
    })
    .await;
    let collector = Collector::start().await;
    let gateway = start_with(collector.options(&[&worker])).await;
    let request = posting("/generate", &lines(), r#"{"stream":true}"#);
    assert!(!raw(&gateway, &request).await.whole);
    let [request, attempt] = collector.spans(TRACE).await;
    assert_eq!(request.get("error.type"), "stream_error");
    assert!(request.error.is_some());
    assert_eq!(attempt.error.as_deref(), Some("truncated"));
    let mut client = Client::to(&gateway).await;
    let other = TRACE.replace("0af", "1af");
    let lines = lines().replace(TRACE, &other);
    client
        .send(&posting(
            "/v1/chat/completions",
            &lines,
            r#"{"stream":true}"#,
        ))
        .await;
    client.read_until("data: 1").await;
    drop(client);
    let [request, attempt] = collector.spans(&other).await;
    assert_eq!(request.get("error.type"), "client_closed_request");
    assert_eq!(request.get("http.response.status_code"), 499);
    assert_eq!((&request.error, &attempt.error), (&None, &None));
    assert_eq!(request.get("smg.stream"), true);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_reaches_no_worker_has_a_span_with_the_reason() {
    let collector = Collector::start().await;
    let gateway = start_with(collector.options(&[])).await;
    let reply = raw(&gateway, &posting("/generate", &lines(), "{}")).await;
    assert_eq!(reply.status, 503);
    let [request] = collector.spans(TRACE).await;
    assert_eq!(request.get("error.type"), "no_available_workers");
    assert_eq!(request.get("smg.attempts"), 0);
    assert!(
        request.error.as_ref().unwrap().contains("workers"),
        "{request:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ratio_decides_where_the_client_does_not() {
    let worker = Worker::doing(ok()).await;
    let collector = Collector::start().await;
    let gateway = start_with(Options {
        trace_sample_ratio: 0.0,
        ..collector.options(&[&worker])
    })
    .await;
    let unsampled = format!("traceparent: 00-{TRACE}-{CLIENT}-00\r\n");
    for lines in [
        "",
        "traceparent: t\r\ntracestate: a=b\r\n",
        &unsampled,
        &lines(),
    ] {
        let request = posting("/generate", lines, "{}");
        assert_eq!(raw(&gateway, &request).await.status, 200);
    }
    let [request, _] = collector.spans(TRACE).await;
    assert_eq!(request.parent, CLIENT);
    let received = worker.received();
    let sent: Vec<_> = received.iter().map(|it| it.all("traceparent")[0]).collect();
    assert!(
        sent[0].ends_with("-00") && sent[1].ends_with("-00"),
        "{sent:?}"
    );
    assert_ne!(sent[0], sent[1]);
    assert_eq!(sent[2], format!("00-{TRACE}-{CLIENT}-00"));
    assert!(received[1].all("tracestate").is_empty());
    assert_eq!(collector.all().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_requests_for_workers_are_traced() {
    let worker = Worker::doing(ok()).await;
    let collector = Collector::start().await;
    let gateway = start_with(collector.options(&[&worker])).await;
    for path in ["/health", "/readiness", "/workers", "/nothing"] {
        get(&gateway, path).await;
    }
    assert_eq!(post(&gateway, "/generate", "{}").await.status, 200);
    gateway.gateway.drain();
    let stopped = || async { gateway.gateway.wait(std::time::Duration::ZERO) };
    until(stopped).await;
    let spans = collector.all();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(
        names,
        ["POST /generate", "attempt /generate"],
        "a stop sends what waits"
    );
    assert_eq!(spans[0].parent, "");
}
