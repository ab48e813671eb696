//! A worker as clients are shown it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::fleet::{Fleet, HealthSpec, Registry, Role, UNKNOWN_MODEL, Worker};

/// A worker in the union of the shapes that 0.3.2 and its successors give; never its key.
pub(super) fn describe(registry: &Registry, worker: &Worker) -> Value {
    let fleet = registry.fleet();
    let (info, availability) = (worker.endpoint.model_info.load(), worker.availability());
    let config = worker.endpoint.config.load();
    let spec = &config.spec;
    let ranks = ranks(fleet, worker);
    let load: usize = match &ranks[..] {
        [] => worker.load.own_requests(),
        ranks => ranks.iter().map(|rank| rank.load.own_requests()).sum(),
    };
    let labels: BTreeMap<_, _> = info.report.labels.iter().chain(&spec.labels).collect();
    let Value::Object(mut view) = json!({
        "id": worker.id.to_string(),
        "url": worker.url().as_str(),
        "index": worker.slot,
        "model_id": info.model,
        "models": models(&info.model),
        "priority": 50,
        "cost": 1.0,
        "worker_type": info.role.as_str(),
        "connection_mode": "http",
        "runtime_type": "sglang",
        "source": registry.source_of(worker).name(),
        "is_healthy": availability.ready,
        "status": availability.status(),
        "paused": availability.paused,
        "circuit_breaker": availability.circuit.as_str(),
        "load": load,
        "disable_health_check": !fleet.is_probed(&worker.endpoint),
        "labels": labels,
    }) else {
        return Value::Null;
    };
    if !ranks.is_empty() {
        let ranks: Vec<_> = ranks.iter().map(|rank| describe_rank(rank)).collect();
        view.insert("dp_size".to_owned(), ranks.len().into());
        view.insert("ranks".to_owned(), ranks.into());
    }
    let reported = (info.role == Role::Prefill).then(|| info.bootstrap_port());
    let port = spec.bootstrap_port.or(reported).map(Value::from);
    let obeys = worker.endpoint.header_overrides.get().as_bool();
    let tls_name = spec.url.tls_name().map(|name| name.as_ref().to_owned());
    for (name, value) in [
        ("bootstrap_port", port),
        ("header_overrides", obeys.map(Value::from)),
        ("zone", spec.zone.clone().map(Value::from)),
        ("tls_server_name", tls_name.map(Value::from)),
    ] {
        view.extend(value.map(|value| (name.to_owned(), value)));
    }
    // What was said of it wins over what is assumed.
    view.extend(spec.extra.clone());
    let health = health(&spec.health);
    if !health.is_empty() {
        view.insert("health".to_owned(), Value::Object(health));
    }
    let metadata = metadata(&view, &labels);
    view.insert("metadata".to_owned(), metadata);
    if let Some(job) = job(fleet, worker) {
        view.insert("job_status".to_owned(), job);
    }
    Value::Object(view)
}

/// Labels, and what is shown beside them, as text: the form of 0.3.2.
fn metadata(view: &Map<String, Value>, labels: &BTreeMap<&String, &String>) -> Value {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let cost = view["cost"].as_f64().unwrap_or_default();
    let mut metadata: BTreeMap<&str, String> = BTreeMap::from([
        ("priority", text(&view["priority"])),
        ("cost", cost.to_string()),
    ]);
    metadata.extend(
        labels
            .iter()
            .map(|(name, value)| (name.as_str(), (*value).clone())),
    );
    json!(metadata)
}

/// Its models, as its successors list them.
fn models(model: &str) -> Value {
    match model {
        UNKNOWN_MODEL => json!([]),
        model => json!([{"id": model}]),
    }
}

/// The data-parallel ranks that are listed under the first one of them.
fn ranks(fleet: &Fleet, worker: &Worker) -> Vec<Arc<Worker>> {
    if worker.rank() != Some(0) {
        return Vec::new();
    }
    let workers = fleet.workers();
    let of = |rank: &&Arc<Worker>| Arc::ptr_eq(&rank.endpoint, &worker.endpoint);
    workers.iter().filter(of).cloned().collect()
}

fn describe_rank(rank: &Worker) -> Value {
    json!({
        "dp_rank": rank.rank(),
        "id": rank.id.to_string(),
        "index": rank.slot,
        "load": rank.load.own_requests(),
        "circuit_breaker": rank.availability().circuit.as_str(),
    })
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
