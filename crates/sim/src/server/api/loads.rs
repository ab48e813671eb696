//! Load of the worker: `/get_load` and `/v1/loads`.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::ratio::{rounded, share};
use super::{info, metrics};
use crate::engine::EngineLoad;
use crate::options::SimOptions;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::runtime::worker::{AppState, Worker};

fn timestamp() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// `/get_load`: one object per rank.
pub(crate) async fn get_load(State(worker): AppState) -> Json<Value> {
    let now = timestamp();
    let loads = worker.loads();
    let object = |(rank, load): (usize, &EngineLoad)| {
        json!({
            "dp_rank": rank, "num_reqs": load.running + load.waiting,
            "num_waiting_reqs": load.waiting,
            "num_tokens": load.used_tokens + load.waiting_uncached_tokens,
            "num_pending_tokens": load.waiting_uncached_tokens, "ts_tic": now,
        })
    };
    Json(loads.iter().enumerate().map(object).collect())
}

/// `/v1/loads`, with the query parameters `dp_rank`, `include` and `format`.
pub(crate) async fn loads(
    State(worker): AppState,
    RawQuery(query): RawQuery,
) -> Result<Response, ErrorResponse> {
    let query = query.unwrap_or_default();
    let value = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next_back()
    };
    if value("format") == Some("prometheus") {
        return Ok(metrics::page(&worker).into_response());
    }
    let only = match value("dp_rank").map(str::parse::<usize>) {
        None => None,
        Some(Ok(rank)) if rank < worker.options.dp_size as usize => Some(rank),
        Some(_) => {
            return Err(ErrorResponse::bad_request(
                Shape::Flat,
                "dp_rank: no such rank",
            ));
        }
    };
    let include = value("include")
        .unwrap_or("all")
        .replace("%2C", ",")
        .replace("%2c", ",");
    let included = |section: &str| {
        include
            .split(',')
            .any(|name| name == section || name == "all")
    };
    let now = timestamp();
    let mut loads: Vec<(usize, EngineLoad)> = worker.loads().into_iter().enumerate().collect();
    loads.retain(|(rank, _)| only.is_none_or(|only| only == *rank));
    let object = |(rank, load): &(usize, EngineLoad)| {
        let mut object = rank_object(&worker.options, *rank, load, now);
        object["disaggregation"] = disaggregation(&worker, *rank as u32);
        trimmed(object, &included)
    };
    let ranks: Vec<Value> = loads.iter().map(object).collect();
    let document = json!({
        "timestamp": now, "version": info::VERSION, "dp_rank_count": worker.options.dp_size,
        "accelerator": "sim", "num_accelerators": worker.options.dp_size,
        "aggregate": aggregate(&worker.options, &loads), "loads": ranks,
    });
    Ok(Json(document).into_response())
}

/// Removes the sections that the request does not include.
fn trimmed(mut object: Value, included: &dyn Fn(&str) -> bool) -> Value {
    if let Some(fields) = object.as_object_mut() {
        for (key, section) in [
            ("memory", "memory"),
            ("disaggregation", "disagg"),
            ("queues", "queues"),
        ] {
            if !included(section) {
                fields.remove(key);
            }
        }
    }
    object
}

fn rank_object(options: &SimOptions, rank: usize, load: &EngineLoad, now: f64) -> Value {
    let limit = options.max_running_requests;
    json!({
        "dp_rank": rank, "timestamp": now,
        "num_running_reqs": load.running,
        "num_waiting_reqs": load.waiting,
        "num_waiting_uncached_tokens": load.waiting_uncached_tokens,
        "num_used_tokens": load.used_tokens,
        "num_total_tokens": load.used_tokens + load.waiting_uncached_tokens,
        "max_total_num_tokens": options.kv_cache_tokens,
        "token_usage": share(load.used_tokens as f64, options.kv_cache_tokens),
        "gen_throughput": rounded(load.tokens_per_sec),
        "cache_hit_rate": rounded(load.cache_hit_rate()),
        "utilization": share(load.running as f64, limit),
        "max_running_requests": limit,
        "total_prefill_uncached_tokens": load.computed_tokens_total,
        "total_prefill_busy_us": load.prefill_time.as_micros() as u64,
        "memory": {
            "weight_gb": 0.0, "kv_cache_gb": 0.0, "graph_gb": 0.0,
            "token_capacity": options.kv_cache_tokens,
        },
        "queues": {"waiting": load.waiting, "grammar": 0, "paused": 0, "retracted": 0},
    })
}

/// The role now, and the legs outside the engine.
fn disaggregation(worker: &Worker, rank: u32) -> Value {
    let legs = worker.disaggregation.legs.load(rank);
    json!({
        "mode": worker.disaggregation.role().as_str(),
        "prefill_bootstrap_queue_reqs": legs.prefill_bootstrap,
        "prefill_inflight_queue_reqs": legs.prefill_inflight,
        "decode_prealloc_queue_reqs": legs.decode_prealloc,
        "decode_transfer_queue_reqs": legs.decode_transfer,
        "decode_retracted_queue_reqs": 0,
        "kv_transfer_speed_gb_s": 0.0, "kv_transfer_latency_ms": 0.0,
    })
}

/// Totals and means of all ranks.
fn aggregate(options: &SimOptions, loads: &[(usize, EngineLoad)]) -> Value {
    let sum = |of: fn(&EngineLoad) -> f64| loads.iter().map(|(_, load)| of(load)).sum::<f64>();
    let count = |of: fn(&EngineLoad) -> u64| loads.iter().map(|(_, load)| of(load)).sum::<u64>();
    let ranks = loads.len().max(1);
    json!({
        "total_running_reqs": count(|load| load.running as u64),
        "total_waiting_reqs": count(|load| load.waiting as u64),
        "total_reqs": count(|load| (load.running + load.waiting) as u64),
        "total_tokens": count(|load| load.used_tokens + load.waiting_uncached_tokens),
        "avg_token_usage": share(sum(|load| load.used_tokens as f64), options.kv_cache_tokens * ranks),
        "avg_throughput": share(sum(|load| load.tokens_per_sec), ranks),
        "avg_utilization": share(sum(|load| load.running as f64), options.max_running_requests * ranks),
    })
}
