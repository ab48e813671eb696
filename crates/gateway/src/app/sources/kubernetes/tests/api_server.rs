//! A scripted API server: lists and watches of pods, and what goes wrong with them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

/// What goes wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Statuses that lists get, one each.
    pub(super) lists: VecDeque<u16>,
    /// Statuses that watches get, one each.
    pub(super) watches: VecDeque<u16>,
    /// Time that a list takes.
    pub(super) list_delay: Duration,
    /// Watches say nothing and never end.
    pub(super) silent: bool,
    /// Watches end in the middle of an event after so many.
    pub(super) cut_after: Option<usize>,
    /// Every event comes twice, and those of a burst in another order.
    pub(super) repeats: bool,
    /// So many deletions make no event.
    pub(super) lost_deletions: usize,
    /// Namespaces that may not be read.
    pub(super) denied: BTreeSet<&'static str>,
    /// So many watches get the event that their version is too old.
    pub(super) expired: usize,
}

/// A change of a pod, as it was and as it is.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    old: Option<Value>,
    new: Option<Value>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<String, Value>,
    version: u64,
    changes: Vec<Change>,
    faults: Faults,
    /// Path and query of every request.
    requests: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct ApiServer {
    pub(super) addr: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl ApiServer {
    pub(super) async fn start() -> (Self, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            addr: listener.local_addr().unwrap(),
            state: Arc::default(),
            changed: watch::Sender::new(0),
        };
        let task = server.serve(listener);
        (server, task)
    }

    /// Serves until the task is aborted.
    pub(super) fn serve(&self, listener: TcpListener) -> JoinHandle<()> {
        let server = self.clone();
        tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let server = server.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                connections.spawn(connection);
            }
        })
    }

    pub(super) fn faults(&self, set: impl FnOnce(&mut Faults)) {
        set(&mut self.state().faults);
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// Adds a pod, or changes it.
    pub(super) fn put(&self, mut pod: Value) {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let mut state = self.state();
        state.version += 1;
        pod["metadata"]["resourceVersion"] = state.version.to_string().into();
        let old = state.pods.insert(name, pod.clone());
        let (version, new) = (state.version, Some(pod));
        state.changes.push(Change { version, old, new });
        drop(state);
        self.changed.send_replace(version);
    }

    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.state().pods[name].clone();
        change(&mut pod);
        self.put(pod);
    }

    pub(super) fn delete(&self, name: &str) {
        let mut state = self.state();
        let Some(mut pod) = state.pods.remove(name) else {
            return;
        };
        state.version += 1;
        if state.faults.lost_deletions > 0 {
            state.faults.lost_deletions -= 1;
            return;
        }
        let version = state.version;
        pod["metadata"]["resourceVersion"] = version.to_string().into();
        let (old, new) = (Some(pod), None);
        state.changes.push(Change { version, old, new });
        drop(state);
        self.changed.send_replace(version);
    }

    pub(super) fn pods(&self) -> BTreeMap<String, Value> {
        self.state().pods.clone()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response {
        let uri = request.uri().clone();
        self.state().requests.push(uri.to_string());
        let query: BTreeMap<_, _> =
            url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let watches = query
            .get("watch")
            .is_some_and(|it| it == "true" || it == "1");
        let refused = {
            let mut state = self.state();
            let faults = &mut state.faults;
            if watches {
                faults.watches.pop_front()
            } else {
                faults.lists.pop_front()
            }
        };
        let scope = Scope::new(
            uri.path(),
            query.get("labelSelector").map_or("", String::as_str),
        );
        let denied = scope.is_one_of(&self.state().faults.denied);
        if let Some(code) = refused.or(denied.then_some(403)) {
            return refusal(code);
        }
        if watches {
            let number = |name: &str| query.get(name).and_then(|it| it.parse().ok()).unwrap_or(0);
            return self.watch(Watch {
                server: self.clone(),
                scope,
                version: number("resourceVersion"),
                end: Instant::now() + Duration::from_secs(number("timeoutSeconds")),
                sent: 0,
                changed: self.changed.subscribe(),
                over: false,
            });
        }
        let delay = self.state().faults.list_delay;
        sleep(delay).await;
        let state = self.state();
        let items = state.pods.values().filter(|object| scope.has(object));
        let items: Vec<_> = items.collect();
        json_reply(
            200,
            &json!({
                "kind": "List", "apiVersion": "v1", "items": items,
                "metadata": {"resourceVersion": state.version.to_string()},
            }),
        )
    }

    fn watch(&self, watch: Watch) -> Response {
        let events = stream::unfold(watch, |mut watch| async move {
            let bytes = watch.next().await?;
            Some((Ok::<_, Infallible>(bytes), watch))
        });
        let _ = self;
        Response::builder()
            .header("content-type", "application/json")
            .body(Body::from_stream(events))
            .unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// One watch.
struct Watch {
    server: ApiServer,
    scope: Scope,
    version: u64,
    end: Instant,
    sent: usize,
    changed: watch::Receiver<u64>,
    over: bool,
}

impl Watch {
    /// The next events, as lines; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over {
                return None;
            }
            if let Some(lines) = self.ready_lines() {
                return Some(lines);
            }
            let silent = self.server.state().faults.silent;
            if silent {
                // It does not even end.
                std::future::pending::<()>().await;
            }
            if timeout_at(self.end, self.changed.changed()).await.is_err() {
                let version = self.version.to_string();
                let metadata = json!({"resourceVersion": version, "creationTimestamp": null});
                let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata});
                self.over = true;
                return Some(line("BOOKMARK", &object).into());
            }
        }
    }

    fn ready_lines(&mut self) -> Option<Bytes> {
        let mut state = self.server.state();
        if state.faults.silent {
            return None;
        }
        if state.faults.expired > 0 {
            state.faults.expired -= 1;
            self.over = true;
            let object = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410,
                "message": "too old resource version"});
            return Some(line("ERROR", &object).into());
        }
        let news = state
            .changes
            .iter()
            .filter(|change| change.version > self.version);
        let mut lines: Vec<String> = news
            .filter_map(|change| event_for(&self.scope, change))
            .collect();
        self.version = state.version;
        if state.faults.repeats {
            lines = disturbed(&lines);
        }
        if lines.is_empty() {
            return None;
        }
        let cut_after = state.faults.cut_after;
        drop(state);
        self.sent += lines.len();
        let mut text = lines.concat();
        if cut_after.is_some_and(|most| self.sent >= most) {
            // In the middle of the last event.
            text.truncate(text.len() - 9);
            self.over = true;
        }
        Some(text.into())
    }
}

/// Each line twice; the order is kept for each pod only.
fn disturbed(lines: &[String]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let name = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["object"]["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    for line in lines.iter().flat_map(|line| [line, line]) {
        // As far forward as the pod's last event allows.
        let after = all.iter().rposition(|other| name(other) == name(line));
        all.insert(after.map_or(0, |at| at + 1), line.clone());
    }
    // And the first one again at the end, long after its time.
    all.extend(lines.first().cloned());
    all
}

fn event_for(scope: &Scope, change: &Change) -> Option<String> {
    let before = change.old.as_ref().filter(|object| scope.has(object));
    let after = change.new.as_ref().filter(|object| scope.has(object));
    match (before, after) {
        (None, None) => None,
        (None, Some(pod)) => Some(line("ADDED", pod)),
        (Some(_), Some(pod)) => Some(line("MODIFIED", pod)),
        (Some(pod), None) => {
            let mut pod = pod.clone();
            pod["metadata"]["resourceVersion"] = change.version.to_string().into();
            Some(line("DELETED", &pod))
        }
    }
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

/// Which objects a request is for.
struct Scope {
    namespace: Option<String>,
    is_of_slices: bool,
    selector: String,
}

impl Scope {
    fn new(path: &str, selector: &str) -> Self {
        let mut parts = path.split('/').skip_while(|part| *part != "namespaces");
        Self {
            namespace: parts.nth(1).map(str::to_owned),
            is_of_slices: path.ends_with("/endpointslices"),
            selector: selector.to_owned(),
        }
    }

    fn is_one_of(&self, namespaces: &BTreeSet<&str>) -> bool {
        self.namespace
            .as_deref()
            .is_some_and(|it| namespaces.contains(it))
    }

    fn has(&self, object: &Value) -> bool {
        let namespace = self.namespace.as_ref();
        namespace.is_none_or(|name| object["metadata"]["namespace"] == name.as_str())
            && self.is_of_slices == (object["kind"] == "EndpointSlice")
            && matches(&self.selector, &object["metadata"]["labels"])
    }
}

/// Whether a label selector matches: `a=1,b in (1,2)`.
pub(super) fn matches(selector: &str, labels: &Value) -> bool {
    let mut rest = selector;
    while !rest.is_empty() {
        let end = match (rest.find(','), rest.find('(')) {
            (Some(comma), Some(open)) if open < comma => rest.find(')').unwrap() + 1,
            (None, _) => rest.len(),
            (Some(comma), _) => comma,
        };
        let term = &rest[..end];
        let fits = match term.split_once(" in (") {
            Some((key, values)) => {
                let value = labels[key].as_str();
                value.is_some_and(|value| {
                    values
                        .trim_end_matches(')')
                        .split(',')
                        .any(|it| it == value)
                })
            }
            None => term
                .split_once('=')
                .is_some_and(|(key, value)| labels[key] == value),
        };
        if !fits {
            return false;
        }
        rest = rest[end..].trim_start_matches(',');
    }
    true
}

fn refusal(code: u16) -> Response {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        410 => "Expired",
        _ => "InternalError",
    };
    let message = format!("pods is {reason}: User \"gateway\" may not");
    json_reply(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message, "metadata": {},
        }),
    )
}

fn json_reply(code: u16, value: &Value) -> Response {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(Body::from(value.to_string()))
        .unwrap()
}
