//! Information about the worker and its model.

use axum::Json;
use axum::extract::State;
use http::{StatusCode, Uri};
use serde_json::{Value, json};

use crate::server::runtime::worker::{AppState, Worker, unix_seconds};

/// Context length that the worker reports, in tokens; not enforced.
pub(crate) const CONTEXT_LENGTH: u32 = 131_072;
/// The SGLang release that the worker imitates.
pub(crate) const VERSION: &str = "0.5.23";

pub(crate) async fn server(State(worker): AppState) -> Json<Value> {
    let options = &worker.options;
    let states: Vec<Value> = worker
        .scheduler
        .loads()
        .iter()
        .map(|load| {
            json!({
                "last_gen_throughput": load.tokens_per_sec,
                "memory_usage": {"token_capacity": options.kv_cache_tokens},
            })
        })
        .collect();
    Json(json!({
        "model_path": options.model,
        "tokenizer_path": options.model,
        "served_model_name": options.model,
        "host": options.host,
        "tp_size": 1,
        "dp_size": options.dp_size,
        "pp_size": 1,
        "is_embedding": false,
        "context_length": CONTEXT_LENGTH,
        "page_size": options.page_size,
        "load_balance_method": "round_robin",
        "disaggregation_mode": options.role.as_str(),
        "disaggregation_bootstrap_port": options.bootstrap_port,
        "max_running_requests": options.max_running_requests,
        "max_queued_requests": options.max_queued_requests,
        "max_total_tokens": options.kv_cache_tokens,
        "random_seed": options.seed,
        "status": if worker.is_ready() { "ready" } else { "starting" },
        "max_total_num_tokens": options.kv_cache_tokens,
        "max_req_input_len": CONTEXT_LENGTH - 6,
        "weight_version": worker.weight_version(),
        "internal_states": states,
        "version": VERSION,
        "simulated": true,
    }))
}

pub(crate) async fn model(State(worker): AppState) -> Json<Value> {
    Json(json!({
        "model_path": worker.options.model,
        "tokenizer_path": worker.options.model,
        "is_generation": true,
        "preferred_sampling_params": null,
        "weight_version": worker.weight_version(),
        "has_image_understanding": false,
        "has_audio_understanding": false,
        "model_type": "sim",
        "architectures": ["SimForCausalLM"],
    }))
}

fn card(worker: &Worker) -> Value {
    let model = &worker.options.model;
    json!({
        "id": model, "object": "model", "created": unix_seconds(), "owned_by": "sglang",
        "root": model, "parent": null, "max_model_len": CONTEXT_LENGTH,
    })
}

pub(crate) async fn models(State(worker): AppState) -> Json<Value> {
    let mut cards = vec![card(&worker)];
    let adapters = worker.adapters();
    cards.extend(adapters.all().iter().map(|(name, path)| {
        json!({
            "id": name, "object": "model", "created": unix_seconds(), "owned_by": "sglang",
            "root": path, "parent": worker.options.model, "max_model_len": null,
        })
    }));
    Json(json!({"object": "list", "data": cards}))
}

/// `/v1/models/{id}`: adapters have no card here. The id is not percent-decoded.
pub(crate) async fn model_card(State(worker): AppState, uri: Uri) -> (StatusCode, Json<Value>) {
    let id = uri.path().strip_prefix("/v1/models/").unwrap_or_default();
    if id == worker.options.model {
        return (StatusCode::OK, Json(card(&worker)));
    }
    let error = json!({
        "message": format!("The model '{id}' does not exist"),
        "type": "invalid_request_error", "param": "model", "code": "model_not_found",
    });
    (StatusCode::NOT_FOUND, Json(json!({"error": error})))
}
