//! The gateway's own log, in a process of its own: the first gateway of a process decides how its
//! log is written.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;
use std::{env, fs};

use gateway::Gateway;
use gateway::config::LogLevel;
use serde_json::{Value, json};

use crate::support::{
    Client, Received, Running, Step, Worker, get, json as answer, posting, raw, start, start_with,
    uncaptured, until,
};

/// Set for the process that plays [`scenario`]: where it writes files.
const DIRECTORY: &str = "SMG_TEST_LOG_DIRECTORY";
/// What no line may have in it.
const PROMPT: &str = "PROMPT-7f3a";
const GATEWAY_KEY: &str = "sk-gateway-51c9";
const CLIENT_KEY: &str = "sk-client-88d2";
const WORKER_KEY: &str = "sk-worker-03be";
const ANSWER: &str = "ANSWER-c41d";
/// Requests that are refused one after the other.
const FLOOD: usize = 200;
const SECRETS: [&str; 5] = [PROMPT, GATEWAY_KEY, CLIENT_KEY, WORKER_KEY, ANSWER];

/// What a run has written.
struct Written {
    /// Lines of the log, from standard error.
    log: Vec<Value>,
    /// Everything, by where it was found.
    all: Vec<(String, String)>,
}

impl Written {
    /// The lines about a request that say how it ended.
    fn of(&self, id: &str) -> Vec<&Value> {
        let ends = ["request failed", "request refused", "client gone"];
        let about = |line: &&Value| {
            let fields = &line["fields"];
            fields["request_id"] == id && ends.contains(&fields["message"].as_str().unwrap_or(""))
        };
        self.log.iter().filter(about).collect()
    }

    /// The one line that says how a request ended.
    fn end(&self, id: &str) -> (&str, &Value) {
        let lines = self.of(id);
        assert_eq!(lines.len(), 1, "{id}: {lines:?}");
        (lines[0]["level"].as_str().unwrap(), &lines[0]["fields"])
    }
}

/// Plays [`scenario`] in a process of its own.
fn play() -> Written {
    let directory = env::temp_dir().join(format!("smg-logs-{}", uuid::Uuid::new_v4()));
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "lifecycle::logs::scenario",
            "--ignored",
            "--nocapture",
        ])
        .env(DIRECTORY, &directory)
        .env("RUST_LOG", "trace")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(status.success(), "{stdout}\n{stderr}");
    let log = stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let log = log.collect();
    let mut all = vec![("stdout".to_owned(), stdout), ("stderr".to_owned(), stderr)];
    for file in fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        all.push((path.display().to_string(), text));
    }
    fs::remove_dir_all(&directory).unwrap();
    Written { log, all }
}

/// One run for all tests of this file.
static WRITTEN: LazyLock<Written> = LazyLock::new(play);

#[test]
fn nothing_that_is_written_has_prompts_or_keys() {
    for (at, text) in &WRITTEN.all {
        assert!(!text.is_empty(), "{at}");
        for secret in SECRETS {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{at}: {}", line.unwrap_or_default());
        }
    }
    let count = |name: &str| {
        WRITTEN
            .all
            .iter()
            .filter(|(at, _)| at.contains(name))
            .count()
    };
    assert_eq!((count("/smg.2"), count("/access.log.2")), (1, 1));
}

#[test]
fn failed_request_has_one_line_by_whose_fault_it_was() {
    assert!(WRITTEN.of("good").is_empty());
    for (id, level, status, code) in [
        ("worker-500", "WARN", 500, ""),
        ("worker-400", "INFO", 400, ""),
        ("overloaded", "WARN", 503, "worker_overloaded"),
        ("cut", "WARN", 200, "stream_error"),
        ("behind-head", "INFO", 200, "worker_refused"),
        ("gone", "DEBUG", 499, "client_closed_request"),
        ("rerank", "WARN", 502, "rerank_response_build_failed"),
        ("bad-json", "INFO", 400, "json_parse_error"),
        ("bad-key", "INFO", 401, "invalid_api_key"),
        ("bad-url", "INFO", 404, "unknown_url"),
        ("bad-type", "INFO", 400, "json_parse_error"),
    ] {
        let (written, fields) = WRITTEN.end(id);
        assert_eq!(written, level, "{fields}");
        assert_eq!(
            (&fields["status"], &fields["code"]),
            (&json!(status), &json!(code)),
            "{id}"
        );
    }
}

#[test]
fn line_of_a_failed_request_says_what_was_tried_and_why_it_failed() {
    let text = |id, name: &str| WRITTEN.end(id).1[name].as_str().unwrap().to_owned();
    for (id, attempts) in [
        ("worker-500", "500@http://"),
        ("overloaded", "queue_full@http://"),
        ("cut", "truncated@http://"),
    ] {
        assert!(text(id, "attempts").starts_with(attempts), "{id}");
        assert!(text(id, "worker").starts_with("http://"), "{id}");
        assert_eq!(
            (&*text(id, "model"), &*text(id, "key")),
            ("test-model", "api_key"),
            "{id}"
        );
    }
    assert!(text("overloaded", "reason").ends_with("is overloaded"));
    assert!(text("gone", "worker").starts_with("http://"));
}

#[test]
fn flood_of_refused_requests_does_not_flood_the_log() {
    // Ten lines a second; the next second's first line counts those left out.
    let lines = |number| WRITTEN.of(&format!("flood-{number}")).len();
    let written: usize = (0..FLOOD).map(lines).sum();
    assert!(written <= 50, "{written}");
    let left_out = |line: &Value| line["fields"]["left_out"].as_u64();
    assert!(WRITTEN.log.iter().any(|line| left_out(line) > Some(0)));
}

#[test]
fn level_that_is_set_holds_for_the_lines_that_follow() {
    // At `error`, and then at `info`.
    assert!(WRITTEN.of("unheard").is_empty());
    assert_eq!(WRITTEN.end("heard").0, "INFO");
    let changed = |line: &&Value| line["fields"]["message"] == "log level changed";
    let changed = WRITTEN.log.iter().find(changed).unwrap();
    assert_eq!(changed["fields"]["to"], "error");
}

#[tokio::test]
async fn level_of_a_log_that_another_part_of_the_process_has_set_up_does_not_change() {
    let gateway = start(&[]).await;
    let request = b"PUT /debug/log-level HTTP/1.1\r\nhost: g\r\ncontent-length: 17\r\n\r\n{\"level\": \"info\"}";
    let reply = raw(&gateway, request).await;
    assert_eq!((reply.status, &*reply.code()), (501, "not_implemented"));
    assert_eq!(get(&gateway, "/debug/log-level").await.status, 501);
}

/// What the process plays that [`play`] starts: requests good and bad, at the most talkative level.
#[test]
#[ignore = "played in a process of its own by the tests above"]
fn scenario() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(scripted());
    gateway::close_log();
}

fn worker_steps(request: &Received) -> Vec<Step> {
    let echo = String::from_utf8_lossy(&request.body).replace('"', "'");
    let message = format!(r#"{{"error":{{"message":"bad: {echo}","code":503}}}}"#);
    let chunk = |text: &str| Step::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes());
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let head = Step::Send(head.into());
    let event = chunk(&format!("data: {{\"text\":\"{ANSWER}\"}}\n\n"));
    match request
        .all("x-request-id")
        .first()
        .copied()
        .unwrap_or_default()
    {
        "worker-500" => answer(500, &message),
        "worker-400" => answer(400, &message),
        "overloaded" => vec![head, chunk(&format!("data: {message}\n\n")), Step::Close],
        "cut" => vec![head, event, Step::Close],
        "gone" => vec![head, event, Step::Hang],
        "behind-head" => [
            vec![Step::Pause(Duration::from_millis(1200))],
            answer(400, &message),
        ]
        .concat(),
        _ => answer(
            200,
            &format!(r#"{{"text":"{ANSWER}","usage":{{"prompt_tokens":1}}}}"#),
        ),
    }
}

async fn ask(gateway: &Running, id: &str, path: &str, body: &str) -> u16 {
    let lines = format!(
        "authorization: Bearer {GATEWAY_KEY}\r\nx-request-id: {id}\r\nx-openai-key: {CLIENT_KEY}\r\n"
    );
    raw(gateway, &posting(path, &lines, body)).await.status
}

async fn set_level(gateway: &Running, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let lines = format!("authorization: Bearer {GATEWAY_KEY}\r\n");
    let request = posting("/debug/log-level", &lines, &body);
    let request = String::from_utf8(request)
        .unwrap()
        .replacen("POST", "PUT", 1);
    let reply = raw(gateway, request.as_bytes()).await;
    (reply.status, reply.json())
}

async fn scripted() {
    let directory = env::var_os(DIRECTORY).map_or_else(env::temp_dir, PathBuf::from);
    let worker = Worker::scripted(worker_steps).await;
    let mut options = uncaptured(&[&worker]);
    options.api_key = Some(GATEWAY_KEY.to_owned().into());
    options.json_log = true;
    options.log_level = Some(LogLevel::Debug);
    options.log_dir = Some(directory.to_str().unwrap().to_owned());
    options.access_log = Some(directory.join("access.log").to_str().unwrap().to_owned());
    options.disable_retries = true;
    options.disable_circuit_breaker = true;
    options.sse_keepalive_secs = 1;
    let gateway = start_with(options).await;
    served(&gateway).await;
    until(|| async { worker.disconnects() >= 1 }).await;
    refused(&gateway).await;
    registered(&gateway, &worker).await;
    flooded(&gateway, &directory).await;
    levels(&gateway).await;
    stop(&gateway.gateway).await;
}

/// Requests that a worker gets.
async fn served(gateway: &Running) {
    let whole = format!(r#"{{"prompt":"{PROMPT}","text":"{PROMPT}","stream":false}}"#);
    let stream = whole.replace("false", "true");
    let documents = format!(r#"{{"query":"{PROMPT}","documents":["{PROMPT}"]}}"#);
    for (id, path, body, status) in [
        ("good", "/v1/completions", &whole, 200),
        ("worker-500", "/v1/completions", &whole, 500),
        ("worker-400", "/v1/completions", &whole, 400),
        ("overloaded", "/v1/completions", &stream, 503),
        ("behind-head", "/v1/completions", &stream, 200),
        ("rerank", "/v1/rerank", &documents, 502),
    ] {
        assert_eq!(ask(gateway, id, path, body).await, status, "{id}");
    }
    for (id, end) in [("cut", "stream_error"), ("gone", ANSWER)] {
        let lines = format!("authorization: Bearer {GATEWAY_KEY}\r\nx-request-id: {id}\r\n");
        let mut client = Client::to(gateway).await;
        client
            .send(&posting("/v1/completions", &lines, &stream))
            .await;
        client.read_until(end).await;
    }
}

/// Requests that the gateway refuses.
async fn refused(gateway: &Running) {
    let broken = format!(r#"{{"prompt":"{PROMPT}" "{PROMPT}":"#);
    let odd = format!(r#"{{"model":["{PROMPT}"],"prompt":"{PROMPT}"}}"#);
    let url = format!("/nowhere?api_key={CLIENT_KEY}");
    for (id, path, body) in [
        ("bad-json", "/v1/completions", &*broken),
        ("odd-model", "/v1/completions", &odd),
        ("bad-type", "/v1/completions", PROMPT),
        ("bad-url", &url, PROMPT),
    ] {
        ask(gateway, id, path, body).await;
    }
    let lines = format!(
        "authorization: Bearer {CLIENT_KEY}\r\nx-api-key: {CLIENT_KEY}\r\nx-request-id: bad-key\r\n"
    );
    let request = posting("/v1/messages", &lines, PROMPT);
    assert_eq!(raw(gateway, &request).await.status, 401);
}

/// More refused requests than are logged, and then some until a line says so.
async fn flooded(gateway: &Running, directory: &Path) {
    for number in 0..FLOOD {
        ask(gateway, &format!("flood-{number}"), "/nowhere", PROMPT).await;
    }
    until(|| async {
        ask(gateway, "later", "/nowhere", PROMPT).await;
        let mut files = fs::read_dir(directory).unwrap();
        let has_count = |text: String| text.contains("\"left_out\":");
        files.any(|file| fs::read_to_string(file.unwrap().path()).is_ok_and(has_count))
    })
    .await;
}

/// Changes of the level, good and bad.
async fn levels(gateway: &Running) {
    let (status, level) = set_level(gateway, &json!({"level": "error"})).await;
    assert_eq!((status, level), (200, json!({"level": "error"})));
    ask(gateway, "unheard", "/nowhere", PROMPT).await;
    let (status, refusal) = set_level(gateway, &json!({"level": "loud"})).await;
    let message = refusal["error"]["message"].as_str().unwrap();
    assert!(
        status == 400 && message.contains("debug, info, warn or error"),
        "{message}"
    );
    assert_eq!(set_level(gateway, &json!({"verbosity": 1})).await.0, 400);
    let directives = json!({"level": "warn,gateway::telemetry=info"});
    assert_eq!(set_level(gateway, &directives).await, (200, directives));
    ask(gateway, "heard", "/nowhere", PROMPT).await;
}

/// Workers with keys, registered well and badly.
async fn registered(gateway: &Running, worker: &Worker) {
    let url = worker.url().replace("127.0.0.1", "localhost");
    let key = json!({"url": url, "api_key": WORKER_KEY});
    let misspelt = json!({"url": url, "api_keys": WORKER_KEY, "apikey": {"api_key": WORKER_KEY}});
    let of_wrong_type = json!({"url": url, "api_key": [WORKER_KEY]});
    let in_url = json!({"url": format!("http://me:{WORKER_KEY}@{}", &url[7..])});
    for spec in [misspelt, of_wrong_type, in_url, key] {
        let lines = format!("authorization: Bearer {GATEWAY_KEY}\r\n");
        let body = spec.to_string();
        raw(gateway, &posting("/workers", &lines, &body)).await;
    }
}

async fn stop(gateway: &Gateway) {
    gateway.drain();
    until(|| async { gateway.wait(Duration::ZERO) }).await;
}
