//! Workers to test, and requests to them.

use sim::{SimOptions, SimStats, SimWorker};
use testkit::{Client, DEADLINE, Reply};

pub(crate) fn start(options: SimOptions) -> SimWorker {
    SimWorker::start(options).expect("the worker starts")
}

pub(crate) fn started() -> SimWorker {
    start(SimOptions {
        record_requests: 16,
        ..SimOptions::default()
    })
}

/// Waits until the counts meet a condition.
pub(crate) async fn until(worker: &SimWorker, condition: impl Fn(&SimStats) -> bool) {
    let met = worker.until(DEADLINE, condition).await;
    assert!(met, "not met: {:?}", worker.stats());
}

/// A connection to the worker.
pub(crate) async fn connect(worker: &SimWorker) -> Client {
    Client::to(worker.addr()).await
}

/// One POST of JSON on its own connection.
pub(crate) async fn post(worker: &SimWorker, path: &str, body: &str) -> Reply {
    testkit::post(worker.addr(), path, body).await
}

/// One GET on its own connection.
pub(crate) async fn get(worker: &SimWorker, path: &str) -> Reply {
    testkit::get(worker.addr(), path).await
}

/// The `data:` lines of an event stream.
pub(crate) fn events(reply: &Reply) -> Vec<String> {
    let text = reply.text();
    let blocks = text.split("\n\n").filter(|block| !block.is_empty());
    blocks
        .map(|block| block.rsplit_once("data: ").expect("a data line").1)
        .map(str::to_owned)
        .collect()
}

/// A chat request of one message.
pub(crate) fn chat(content: &str, rest: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]{rest}}}"#)
}
