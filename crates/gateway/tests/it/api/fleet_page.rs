//! The page that shows the fleet, and the snapshots that it is made from.

use std::mem;
use std::time::Duration;

use gateway::config::FleetPage;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::support::{
    Client, DEADLINE, Running, Step, Worker, bare, chat_stream, circuit, generate, get, head_of,
    json, ok, options, posting, raw, start, start_with, touchy, until,
};

const STREAM: &[u8] = b"GET /debug/fleet/stream HTTP/1.1\r\nhost: g\r\n\r\n";

/// A viewer of the stream.
struct Viewer {
    client: Client,
    text: String,
}

impl Viewer {
    async fn of(gateway: &Running) -> Self {
        let mut client = Client::to(gateway).await;
        client.send(STREAM).await;
        let head = client.head().await.unwrap().unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), "text/event-stream");
        assert_eq!(head.header("cache-control"), "no-store");
        let text = String::new();
        Self { client, text }
    }

    /// The next event: its name and its data; `None` at the end.
    async fn event(&mut self) -> Option<(String, Value)> {
        while !self.text.contains("\n\n") {
            let chunk = self.client.chunk().await.unwrap()?;
            if chunk.is_empty() {
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        let rest = self.text.split_off(self.text.find("\n\n").unwrap());
        let event = mem::replace(&mut self.text, rest.trim_start().to_owned());
        let (name, data) = event.split_once('\n').unwrap_or(("", &event));
        let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        Some((name.to_owned(), data))
    }

    /// The next snapshot for which this holds.
    async fn until(&mut self, holds: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                let (_, data) = self.event().await.unwrap();
                if holds(&data) {
                    return data;
                }
            }
        };
        timeout(DEADLINE, found).await.unwrap()
    }
}

async fn snapshot(gateway: &Running) -> Value {
    get(gateway, "/debug/fleet.json").await.json()
}

#[tokio::test]
async fn page_comes_with_a_policy_that_lets_nothing_else_run() {
    let mut options = options(&[]);
    options.api_key = Some("k".to_owned().into());
    let gateway = start_with(options).await;
    let page = get(&gateway, "/debug/fleet").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    let policy = page.header("content-security-policy");
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(page.body.len() <= 60_000, "{} bytes", page.body.len());
    let data = get(&gateway, "/debug/fleet.json").await;
    assert_eq!(data.status, 401, "the page is open, the data is not");
}

#[tokio::test]
async fn page_can_be_taken_away() {
    let mut options = options(&[]);
    options.fleet_page = FleetPage::Off;
    let gateway = start_with(options).await;
    for path in ["/debug/fleet", "/debug/fleet.json", "/debug/fleet/stream"] {
        assert_eq!(get(&gateway, path).await.status, 404, "{path}");
        let metrics = gateway.gateway.metrics_addr().unwrap();
        assert_eq!(get(metrics, path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn snapshots_follow_a_drain_and_its_end() {
    let workers = [Worker::doing(ok()).await, Worker::doing(ok()).await];
    let gateway = start(&[&workers[0], &workers[1]]).await;
    let mut viewer = Viewer::of(&gateway).await;
    let (name, hello) = viewer.event().await.unwrap();
    assert_eq!(
        (name.as_str(), &hello["role"]),
        ("event: viewer", &"admin".into())
    );
    let (name, first) = viewer.event().await.unwrap();
    assert_eq!(
        (name.as_str(), first["workers"].as_array().unwrap().len()),
        ("", 2)
    );
    let worker = &first["workers"][0];
    assert_eq!(
        (&worker["status"], &worker["selectable"]),
        (&"ready".into(), &true.into())
    );
    assert_eq!(worker["name"], workers[0].url());
    let id = worker["id"].as_str().unwrap().to_owned();
    let state = |snapshot: &Value| snapshot["workers"][0]["status"].clone();
    for (action, status) in [
        ("drain", "drained"),
        ("drain", "drained"),
        ("undrain", "ready"),
    ] {
        let reply = bare(&gateway, &format!("POST /workers/{id}/{action}")).await;
        assert_eq!(
            (reply.status, &reply.json()["status"]),
            (200, &status.into())
        );
        let changed = viewer.until(|snapshot| state(snapshot) == status).await;
        assert_eq!(changed["workers"][0]["selectable"], status == "ready");
        assert_eq!(
            changed["pools"][0]["selectable"],
            if status == "ready" { 2 } else { 1 }
        );
    }
}

#[tokio::test]
async fn snapshot_has_breakers_errors_and_streams() {
    let bad = Worker::listening(0, |request| match request.path() {
        "/generate" => json(500, "{}"),
        "/v1/chat/completions" => vec![
            Step::Send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\ndata: 1\n\n".to_vec()),
        ],
        _ => ok(),
    })
    .await;
    let gateway = start_with(touchy(&[&bad])).await;
    assert_eq!(raw(&gateway, &chat_stream()).await.status, 200);
    for _ in 0..3 {
        raw(&gateway, &generate("")).await;
    }
    assert_eq!(circuit(&gateway, 0).await, "open");
    let snapshot = snapshot(&gateway).await;
    let row = &snapshot["workers"][0];
    assert_eq!(row["circuit_breaker"], "open");
    assert_eq!((&row["failures"], &row["streams"]), (&3.into(), &1.into()));
    assert!(row["ttft_secs"].as_f64().unwrap() > 0.0);
    let decisions = snapshot["decisions"].as_array().unwrap();
    assert_eq!(
        (decisions.len(), &decisions[0]["worker"]),
        (4, &bad.url().into())
    );
}

#[tokio::test]
async fn snapshot_has_the_queue_of_a_full_fleet() {
    let worker = Worker::listening(0, |request| match request.path() {
        "/generate" => vec![Step::Hang],
        _ => ok(),
    })
    .await;
    let mut options = options(&[&worker]);
    options.max_requests_per_worker = 1;
    let gateway = start_with(options).await;
    let mut viewer = Viewer::of(&gateway).await;
    let _held = Client::asking(&gateway, "").await;
    until(|| async { gateway.in_flight().await == 1 }).await;
    let _waiting = Client::asking(&gateway, "").await;
    let full = viewer
        .until(|snapshot| snapshot["pools"][0]["queued"] == 1)
        .await;
    assert_eq!(full["limits"]["queued_for_a_worker"], 1);
    assert_eq!(full["workers"][0]["requests"], 1);
}

#[tokio::test]
async fn predicted_and_reported_hits_are_summed_per_worker() {
    let reply = r#"{"text":"","meta_info":{"prompt_tokens":1000,"completion_tokens":1,"cached_tokens":250}}"#;
    let worker = Worker::doing(json(200, reply)).await;
    let mut options = options(&[&worker]);
    options.policy = routing::PolicyKind::CacheAware;
    let gateway = start_with(options).await;
    let body = format!(r#"{{"text":"{}"}}"#, "word ".repeat(800));
    for _ in 0..2 {
        assert_eq!(
            raw(&gateway, &posting("/generate", "", &body)).await.status,
            200
        );
    }
    let row = snapshot(&gateway).await["workers"][0].clone();
    let field = |name: &str| row[name].as_u64().unwrap();
    assert_eq!(
        (field("reported_prompt_tokens"), field("reported_tokens")),
        (2000, 500)
    );
    let (prompt, predicted) = (field("prompt_tokens"), field("predicted_tokens"));
    // The second prompt is the first one again.
    assert!(
        predicted * 5 > prompt * 2 && predicted * 2 <= prompt,
        "{row}"
    );
}

#[tokio::test]
async fn ninth_viewer_is_refused_until_another_leaves() {
    let gateway = start(&[]).await;
    let mut viewers = Vec::new();
    for _ in 0..8 {
        viewers.push(Viewer::of(&gateway).await);
    }
    let refused = raw(&gateway, STREAM).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "too_many_viewers")
    );
    assert!(refused.text().contains("8 viewers"), "{}", refused.text());
    viewers.pop();
    until(|| async { head_of(&gateway, STREAM).await.status == 200 }).await;
}

#[tokio::test]
async fn all_viewers_get_the_same_snapshots_and_without_viewers_none_is_built() {
    let gateway = start(&[]).await;
    let number = |snapshot: &Value| snapshot["snapshot"].as_u64();
    let mut viewers = [Viewer::of(&gateway).await, Viewer::of(&gateway).await];
    let mut last = 0;
    for _ in 0..2 {
        let first = viewers[0].until(|it| number(it) > Some(last)).await;
        last = number(&first).unwrap();
        let same = viewers[1].until(|it| number(it) >= Some(last)).await;
        assert_eq!(same, first);
        // Viewers' own is what others that ask get.
        assert_eq!(snapshot(&gateway).await, first);
    }
    assert!(last <= 3, "{last}");
    drop(viewers);
    // Once the viewers' places are free, nothing is built any more.
    let mut settled = Vec::new();
    until(|| async { head_of(&gateway, STREAM).await.status == 200 }).await;
    for _ in 0..2 {
        sleep(Duration::from_millis(1500)).await;
        settled.push(number(&snapshot(&gateway).await).unwrap());
    }
    assert_eq!(
        settled[1],
        settled[0] + 1,
        "only what was asked for is built"
    );
}

#[tokio::test]
async fn streams_end_when_the_gateway_stops() {
    let gateway = start(&[]).await;
    let mut viewer = Viewer::of(&gateway).await;
    viewer.event().await.unwrap();
    gateway.gateway.drain();
    let ended = async { while viewer.event().await.is_some() {} };
    timeout(DEADLINE, ended).await.unwrap();
}

#[tokio::test]
async fn names_of_workers_stay_text() {
    let worker = Worker::listening(0, |request| match request.path() {
        "/model_info" | "/get_model_info" => json(
            200,
            r#"{"model_path":"<img src=x onerror=alert(1)>\u2028\n"}"#,
        ),
        _ => ok(),
    })
    .await;
    let gateway = start(&[&worker]).await;
    let mut viewer = Viewer::of(&gateway).await;
    let hostile = "<img src=x onerror=alert(1)>";
    let shown = |snapshot: &Value| {
        let model = snapshot["workers"][0]["model"].as_str().unwrap_or_default();
        model.starts_with(hostile)
    };
    // A line's end in a name is no end of an event.
    viewer.until(shown).await;
    let data = get(&gateway, "/debug/fleet.json").await;
    assert_eq!(data.header("content-type"), "application/json");
    assert_eq!(data.header("x-content-type-options"), "nosniff");
}
