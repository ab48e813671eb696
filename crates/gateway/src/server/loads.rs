//! What is asked of every worker: loads, cache flush, engine metrics.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::{disclosure, info};
use crate::error::Error;
use crate::fleet::{Fleet, invalidate_cache};
use crate::proxy::{FanOut, ReplyBody, WorkerAnswer, WorkerQuestion};

const LOADS: &str = "/v1/loads?include=core,disagg,queues,memory";

/// The workers' own loads: `workers` as in 0.3.2, the rest in SGLang's `/v1/loads` shape.
pub(super) async fn loads(fan_out: &FanOut) -> Response<ReplyBody> {
    let asked = fan_out
        .ask_all(&WorkerQuestion::get(&[LOADS, "/get_load"]))
        .await;
    let (mut workers, mut loads) = (Vec::new(), Vec::new());
    for asked in &asked {
        let ranks = ranks(asked);
        let sum = |field: &str| {
            ranks
                .iter()
                .filter_map(|rank| rank.get(field)?.as_i64())
                .sum::<i64>()
        };
        let known = |field: &str| ranks.iter().any(|rank| rank.contains_key(field));
        let load = match ["num_used_tokens", "num_tokens"]
            .into_iter()
            .find(|field| known(field))
        {
            Some(field) => sum(field),
            None => -1,
        };
        let url = asked.worker.url().as_str();
        workers.push(json!({"worker": url, "load": load}));
        loads.extend(ranks.into_iter().map(|mut rank| {
            rank.insert("worker".to_owned(), url.into());
            let mut rank = Value::Object(rank);
            disclosure::redact(&mut rank);
            rank
        }));
    }
    let total = |field: &str| {
        loads
            .iter()
            .filter_map(|rank| rank.get(field)?.as_i64())
            .sum::<i64>()
    };
    let aggregate = json!({
        "total_running_reqs": total("num_running_reqs"),
        "total_waiting_reqs": total("num_waiting_reqs"),
    });
    let ranks = loads.len();
    let reply =
        json!({"workers": workers, "dp_rank_count": ranks, "loads": loads, "aggregate": aggregate});
    info::json(StatusCode::OK, &reply)
}

/// One object per data-parallel rank, from either of the two shapes SGLang gives.
fn ranks(asked: &WorkerAnswer) -> Vec<Map<String, Value>> {
    let answer = asked
        .answer
        .as_ref()
        .ok()
        .filter(|answer| answer.status.is_success());
    let value = answer.and_then(|answer| serde_json::from_slice(&answer.body).ok());
    let list = match value {
        Some(Value::Object(mut object)) => object.remove("loads").unwrap_or_default(),
        Some(list) => list,
        None => Value::Null,
    };
    serde_json::from_value(list).unwrap_or_default()
}

/// Flushes every worker's prefix cache: 200 when all did, 206 when some did not.
pub(super) async fn flush_cache(fleet: &Fleet, fan_out: &FanOut) -> Response<ReplyBody> {
    let question = WorkerQuestion::post(&["/flush_cache"], Bytes::new());
    let asked = fan_out.ask_all(&question).await;
    let (mut successful, mut failed) = (Vec::new(), Vec::new());
    for asked in &asked {
        let url = asked.worker.url().as_str();
        match failure(&asked.answer) {
            None => {
                invalidate_cache(fleet, &asked.worker);
                successful.push(json!(url));
            }
            Some(error) => failed.push(json!({"worker": url, "error": error})),
        }
    }
    let (total, flushed) = (asked.len(), successful.len());
    let mut reply = json!({
        "status": "success",
        "message": format!("flushed the cache of {flushed} of {total} workers"),
        "workers_flushed": flushed,
        "total_http_workers": total,
        "total_workers": total,
    });
    if failed.is_empty() {
        return info::json(StatusCode::OK, &reply);
    }
    reply["status"] = "partial_success".into();
    reply["successful"] = successful.into();
    reply["failed"] = failed.into();
    info::json(StatusCode::PARTIAL_CONTENT, &reply)
}

fn failure(answer: &Result<crate::upstream::PrivateAnswer, Error>) -> Option<String> {
    match answer {
        Ok(answer) if answer.status.is_success() => None,
        Ok(answer) => Some(format!(
            "{}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        )),
        Err(error) => Some(error.to_string()),
    }
}

/// Every worker's Prometheus metrics, told apart by a `worker_addr` label.
pub(super) async fn engine_metrics(fan_out: &FanOut) -> Response<ReplyBody> {
    let asked = fan_out.ask_all(&WorkerQuestion::get(&["/metrics"])).await;
    if asked.is_empty() {
        let none = "No available workers";
        return info::fixed(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", none);
    }
    let mut merged = super::exposition::Exposition::default();
    let mut answered = false;
    for asked in &asked {
        if let Ok(answer) = asked.answer.as_ref().map_err(drop)
            && answer.status.is_success()
        {
            answered = true;
            let text = String::from_utf8_lossy(&answer.body);
            merged.add(&text, asked.worker.url().as_str());
        }
    }
    if !answered {
        let failed = "All backend requests failed";
        return info::fixed(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", failed);
    }
    info::fixed(StatusCode::OK, "text/plain", merged.render())
}
