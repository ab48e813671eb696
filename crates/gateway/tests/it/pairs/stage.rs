//! A gateway in front of scripted prefill and decode workers.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use gateway::Options;
use serde_json::Value;
use tokio::time::timeout;

use crate::support::{Received, Running, Step, Worker, get, json, options, until};

/// A worker that takes aborts, and answers everything else by this script.
pub(super) async fn engine(
    script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
) -> Worker {
    Worker::scripted(move |request| {
        if request.path() == "/abort_request" {
            json(200, "")
        } else {
            script(request)
        }
    })
    .await
}

/// The same, with these steps for every request.
pub(super) async fn doing(steps: Vec<Step>) -> Worker {
    engine(move |_| steps.clone()).await
}

/// The same, whose engine obeys `x-override-*` headers while the flag is set.
pub(super) async fn obeying(
    obeys: &Arc<AtomicBool>,
    script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
) -> Worker {
    Worker::obeying(Arc::clone(obeys), move |request| {
        if request.path() == "/abort_request" {
            json(200, "")
        } else {
            script(request)
        }
    })
    .await
}

/// Options of a gateway in front of these workers.
pub(crate) fn pair_options(prefill: &[&Worker], decode: &[&Worker]) -> Options {
    Options {
        pd_disaggregation: true,
        prefill_urls: Some(prefill.iter().map(|it| (it.url(), Some(8997))).collect()),
        decode_urls: Some(decode.iter().map(|it| it.url()).collect()),
        ..options(&[])
    }
}

/// A stream of these events, in two pieces that are cut within one.
pub(super) fn stream(events: &[Value]) -> Vec<Step> {
    let mut text =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned();
    let events = events.iter().map(|event| format!("data: {event}\n\n"));
    for event in events.chain(["data: [DONE]\n\n".to_owned()]) {
        write!(text, "{:x}\r\n{event}\r\n", event.len()).unwrap();
    }
    text += "0\r\n\r\n";
    let (one, other) = text.split_at(text.len() / 2);
    vec![
        Step::Send(one.as_bytes().to_vec()),
        Step::Wait,
        Step::Send(other.as_bytes().to_vec()),
    ]
}

/// Paths that are no inference.
const CONTROL: [&str; 2] = ["/abort_request", "/pd_role_switch"];

/// The inference requests that a worker got.
pub(crate) fn asked(worker: &Worker) -> Vec<Received> {
    let mut received = worker.received();
    received.retain(|request| !CONTROL.contains(&request.path()));
    received
}

/// The ids in the aborts that a worker got.
pub(super) fn aborted(worker: &Worker) -> Vec<String> {
    let received = worker.received();
    let aborts = received
        .iter()
        .filter(|request| request.path() == "/abort_request");
    let ids = aborts.map(|request| body(request)["rid"].as_str().unwrap().to_owned());
    ids.collect()
}

/// A request's body.
pub(super) fn body(request: &Received) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

/// Waits until a worker has seen the end of the request that it has, by abort and by connection.
pub(super) async fn has_seen_the_end(worker: &Worker) {
    let rid = body(&asked(worker)[0])["rid"].as_str().unwrap().to_owned();
    let seen = until(|| async { aborted(worker).contains(&rid) && worker.disconnects() > 0 });
    let seen = timeout(Duration::from_secs(1), seen).await;
    assert!(seen.is_ok(), "the worker has not seen the end of {rid}");
}

/// The breakers that are not closed, by URL.
pub(super) async fn open_circuits(gateway: &Running) -> Vec<String> {
    let workers = get(gateway, "/workers").await.json();
    let workers = workers["workers"].as_array().unwrap().clone();
    let open = workers
        .iter()
        .filter(|worker| worker["circuit_breaker"] != "closed");
    open.map(|worker| worker["url"].as_str().unwrap().to_owned())
        .collect()
}
