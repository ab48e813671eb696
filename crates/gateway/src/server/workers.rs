//! The workers, as the routes about them show and change them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use url::form_urlencoded;
use uuid::Uuid;

use super::info;
use super::service::AppState;
use super::worker_body::{self, Fields};
use crate::config::{Secret, WorkerUrl};
use crate::error::Error;
use crate::fleet::{
    Fleet, HealthSpec, Labels, PendingRegistration, RegistrationError, Registry, StartupError,
    UNKNOWN_MODEL, Worker, WorkerSpec,
};
use crate::proxy::{ReplyBody, declares_json, drain_in_background, read_body};

/// Largest description of a worker, bytes.
const MOST_SPEC: u64 = 1024 * 1024;

/// What is done to the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    /// With a `url` in place of what was said before; without, as [`Patch`](Self::Patch).
    Put,
    Patch,
    Remove,
}

/// The same with everything in the query, and an answer when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Legacy {
    Add,
    Remove,
    List,
}

impl From<RegistrationError> for Error {
    fn from(why: RegistrationError) -> Self {
        match why {
            RegistrationError::Exists { .. } => Self::WorkerExists(why.to_string()),
            RegistrationError::Removed(id) => Self::WorkerNotFound(id),
            RegistrationError::Draining { .. } => Self::WorkerLeaving(why.to_string()),
            RegistrationError::Stopping => Self::RegistrationFailed(why.to_string()),
        }
    }
}

/// Every worker, or those of the model that the query names.
pub(super) fn list(fleet: &Fleet, uri: &Uri) -> Response<ReplyBody> {
    let model = parameter(uri, "model");
    let all = fleet.workers();
    let of_model = |worker: &&Arc<Worker>| {
        let wanted = model.as_ref();
        wanted.is_none_or(|model| worker.endpoint.model_info.load().model == *model)
    };
    let workers: Vec<_> = all.iter().filter(of_model).collect();
    let total = workers.len();
    let workers: Vec<_> = workers
        .into_iter()
        .map(|worker| describe(fleet, worker))
        .collect();
    let stats = json!({"prefill_count": 0, "decode_count": 0, "regular_count": total});
    let body = json!({"workers": workers, "total": total, "stats": stats});
    info::json(StatusCode::OK, &body)
}

/// One worker.
pub(super) fn one(fleet: &Fleet, path: &str) -> Result<Response<ReplyBody>, Error> {
    let worker = named(fleet, path)?;
    Ok(info::json(StatusCode::OK, &describe(fleet, &worker)))
}

/// Adds, changes or removes a worker; what is still to be done then is done without the client.
pub(super) async fn change(
    registry: &Registry,
    change: Change,
    request: Request<Incoming>,
    most: u64,
) -> Result<Response<ReplyBody>, Error> {
    let path = request.uri().path().to_owned();
    // First whom it is about, then what.
    let worker = match change {
        Change::Add => None,
        _ => Some(named(registry.fleet(), &path)?),
    };
    let Some(worker) = worker else {
        return add(registry, &fields(request, most).await?);
    };
    if change == Change::Remove {
        registry.remove(&worker);
        let told = json!({
            "status": "accepted",
            "worker_id": worker.id.to_string(),
            "in_flight": worker.load.requests(),
            "message": "Worker removal queued for background processing",
        });
        return Ok(info::json(StatusCode::ACCEPTED, &told));
    }
    let fields = fields(request, most).await?;
    let replace = change == Change::Put && fields.get("url").is_some_and(|url| !url.is_null());
    registry.update(&worker, |spec, told| {
        let bare = WorkerSpec::new(worker.url().clone());
        worker_body::read(&fields, if replace { &bare } else { spec }, told)
    })?;
    let told = json!({
        "status": "accepted",
        "worker_id": worker.id.to_string(),
        "message": "Worker update queued for background processing",
    });
    Ok(info::json(StatusCode::ACCEPTED, &told))
}

fn add(registry: &Registry, fields: &Fields) -> Result<Response<ReplyBody>, Error> {
    let url = worker_body::url(fields)?;
    let added = registry.add(&url, |spec, told| worker_body::read(fields, spec, told));
    let worker = added?;
    let location = format!("/workers/{}", worker.id);
    let told = json!({
        "status": "accepted",
        "worker_id": worker.id.to_string(),
        "url": worker.url().as_str(),
        "location": location,
        "message": "Worker addition queued for background processing",
    });
    let mut response = info::json(StatusCode::ACCEPTED, &told);
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The routes as they were before 0.3.
pub(super) async fn legacy(
    state: &AppState,
    legacy: Legacy,
    uri: &Uri,
) -> Result<Response<ReplyBody>, Error> {
    let registry = &state.registry;
    if legacy == Legacy::List {
        let workers = registry.fleet().workers();
        let urls: Vec<_> = workers.iter().map(|worker| worker.url().as_str()).collect();
        return Ok(info::json(StatusCode::OK, &json!({"urls": urls})));
    }
    let url = parameter(uri, "url").map(Value::from);
    let fields = Fields::from_iter(url.map(|url| ("url".to_owned(), url)));
    let url = worker_body::url(&fields)?;
    if legacy == Legacy::Remove {
        let worker = registry.fleet().find(url.as_str());
        let unknown = || Error::WorkerSpec(format!("Worker {url} not found"));
        registry.remove(&worker.ok_or_else(unknown)?);
        return Ok(info::text(format!("Successfully removed worker: {url}")));
    }
    let key = parameter(uri, "api_key").filter(|key| !key.is_empty());
    let key = key.map(|key| worker_body::key(&key)).transpose()?;
    // A gateway that stops waits for nobody.
    tokio::select! {
        added = add_and_wait(registry, &url, key) => added?,
        () = state.shutdown.draining() => return Err(RegistrationError::Stopping.into()),
    }
    Ok(info::text(format!("Successfully added worker: {url}")))
}

async fn add_and_wait(
    registry: &Arc<Registry>,
    url: &WorkerUrl,
    key: Option<Secret>,
) -> Result<(), Error> {
    let say = |spec: &WorkerSpec, _: &Labels| -> Result<_, Error> {
        Ok(WorkerSpec {
            key: key.or_else(|| spec.key.clone()),
            ..spec.clone()
        })
    };
    let pending = PendingRegistration::start(registry, url, say)?;
    let worker = pending.worker().url().to_string();
    let seconds = registry.startup_timeout().as_secs();
    let late = |fate| format!("did not become ready within {seconds} s, and {fate}");
    pending.wait().await.map_err(|why| Error::NotUp {
        worker,
        why: match why {
            StartupError::TimedOut => late("was not added"),
            StartupError::TimedOutButShared => late("is still listed: others registered it"),
            StartupError::Removed => "was removed before it became ready".to_owned(),
        },
    })
}

/// What the query says under this name.
fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let query = uri.query().unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
}

/// The JSON object that a request brings.
async fn fields(request: Request<Incoming>, most: u64) -> Result<Fields, Error> {
    let (parts, body) = request.into_parts();
    if !declares_json(&parts.headers) {
        drain_in_background(body);
        let why = "missing 'content-type: application/json'";
        return Err(Error::WorkerSpec(why.to_owned()));
    }
    let body: Bytes = read_body(body, most.min(MOST_SPEC)).await?;
    let fields = serde_json::from_slice(&body);
    fields.map_err(|error| Error::WorkerSpec(format!("the body is no JSON object: {error}")))
}

/// The worker that the last part of a path names.
fn named(fleet: &Fleet, path: &str) -> Result<Arc<Worker>, Error> {
    let id = path.rsplit('/').next().unwrap_or_default();
    let id = Uuid::parse_str(id).map_err(|error| Error::WorkerId {
        id: id.to_owned(),
        why: error.to_string(),
    })?;
    let workers = fleet.workers();
    let found = workers.iter().find(|worker| worker.id == id);
    found.cloned().ok_or(Error::WorkerNotFound(id))
}

/// A worker in the union of the shapes that 0.3.2 and its successors give; never its key.
fn describe(fleet: &Fleet, worker: &Worker) -> Value {
    let (identity, glance) = (worker.endpoint.model_info.load(), worker.availability());
    let terms = worker.endpoint.config.load();
    let spec = &terms.spec;
    let known = Some(&identity.model).filter(|model| *model != UNKNOWN_MODEL);
    let model = known.map(|model| json!([{"id": model}]));
    let labels: BTreeMap<_, _> = identity.labels.iter().chain(&spec.labels).collect();
    let Value::Object(mut told) = json!({
        "id": worker.id.to_string(),
        "url": worker.url().as_str(),
        "index": worker.slot,
        "model_id": identity.model,
        "models": model.unwrap_or(json!([])),
        "priority": 50,
        "cost": 1.0,
        "worker_type": "regular",
        "connection_mode": "http",
        "runtime_type": "sglang",
        "is_healthy": glance.ready,
        "status": glance.status(),
        "circuit_breaker": glance.circuit.as_str(),
        "load": worker.load.requests(),
        "disable_health_check": !fleet.is_probed(&worker.endpoint),
        "labels": labels,
    }) else {
        return Value::Null;
    };
    // What was said of it wins over what is assumed.
    told.extend(spec.extra.clone());
    let health = health(&spec.health);
    if !health.is_empty() {
        told.insert("health".to_owned(), Value::Object(health));
    }
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let cost = told["cost"].as_f64().unwrap_or_default();
    let mut metadata: BTreeMap<&str, String> = BTreeMap::from([
        ("priority", text(&told["priority"])),
        ("cost", cost.to_string()),
    ]);
    metadata.extend(
        labels
            .iter()
            .map(|(name, value)| (name.as_str(), (*value).clone())),
    );
    told.insert("metadata".to_owned(), json!(metadata));
    if let Some(job) = job(fleet, worker) {
        told.insert("job_status".to_owned(), job);
    }
    Value::Object(told)
}

fn health(spec: &HealthSpec) -> Map<String, Value> {
    let all = [
        ("timeout_secs", spec.timeout_secs.map(Value::from)),
        ("check_interval_secs", spec.interval_secs.map(Value::from)),
        ("success_threshold", spec.success_threshold.map(Value::from)),
        ("failure_threshold", spec.failure_threshold.map(Value::from)),
        ("disable_health_check", spec.disabled.map(Value::from)),
    ];
    let set = all.into_iter();
    set.filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// What became of the registration of a worker that has never been ready.
fn job(fleet: &Fleet, worker: &Worker) -> Option<Value> {
    let job = fleet.registration_status(worker)?;
    let since = SystemTime::now().checked_sub(job.age)?;
    let timestamp = since.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let (status, message) = if job.failed {
        (
            "failed",
            Some("the worker did not come up in time; it is probed on"),
        )
    } else {
        ("processing", None)
    };
    Some(json!({
        "job_type": "AddWorker",
        "worker_url": worker.url().as_str(),
        "status": status,
        "message": message,
        "timestamp": timestamp,
    }))
}
