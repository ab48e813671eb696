//! Information about the worker and its model.

use axum::Json;
use axum::extract::State;
use http::{StatusCode, Uri};
use serde_json::{Value, json};

use crate::options::Role;
use crate::server::load_publisher;
use crate::server::runtime::worker::{AppState, Worker, unix_seconds};

/// The SGLang release that the worker imitates.
pub(crate) const VERSION: &str = "0.5.23";

pub(crate) async fn server(State(worker): AppState) -> Json<Value> {
    let options = &worker.options;
    let length = options.reported_context_length();
    let own_port = options.disaggregation_bootstrap_port;
    let bootstrap_port = worker.disaggregation.bootstrap_port().unwrap_or(own_port);
    let states: Vec<Value> = worker
        .loads()
        .iter()
        .map(|load| {
            json!({
                "last_gen_throughput": load.tokens_per_sec,
                "memory_usage": {"token_capacity": options.kv_cache_tokens},
            })
        })
        .collect();
    let mut document = json!({
        "model_path": options.model,
        "tokenizer_path": options.model,
        "served_model_name": options.model,
        "host": options.host,
        "tp_size": 1,
        "dp_size": options.dp_size,
        "pp_size": 1,
        "is_embedding": false,
        "context_length": length,
        "page_size": options.page_size,
        "load_balance_method": load_balance_method(options.disaggregation_mode),
        "disaggregation_mode": options.disaggregation_mode.as_str(),
        "disaggregation_bootstrap_port": bootstrap_port,
        "enable_pd_role_switch": options.enable_pd_role_switch,
        "enable_cache_report": true,
        "max_running_requests": options.max_running_requests,
        "max_queued_requests": options.max_queued_requests,
        "max_total_tokens": options.kv_cache_tokens,
        "random_seed": options.seed,
        "status": if worker.is_ready() { "ready" } else { "starting" },
        "max_total_num_tokens": options.kv_cache_tokens,
        "max_req_input_len": length.saturating_sub(6),
        "weight_version": worker.weight_version(),
        "internal_states": states,
        "version": VERSION,
        "simulated": true,
    });
    if let Some(port) = worker.load_port {
        document["kv_events"] = json!({
            "publisher": "zmq", "endpoint_host": "*", "topic": "", "dp_size": options.dp_size,
            "load_endpoint_port_base": port, "load_topic": load_publisher::TOPIC,
        });
    }
    Json(document)
}

fn load_balance_method(role: Role) -> &'static str {
    match role {
        Role::Prefill => "follow_bootstrap_room",
        Role::Null | Role::Decode => "round_robin",
    }
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
        "disaggregation_mode": worker.disaggregation.role().as_str(),
    }))
}

fn card(worker: &Worker) -> Value {
    let model = &worker.options.model;
    json!({
        "id": model, "object": "model", "created": unix_seconds(), "owned_by": "sglang",
        "root": model, "parent": null, "max_model_len": worker.options.reported_context_length(),
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
