//! What clients may read of an answer that a worker gave to the gateway's own credentials.
//!
//! `SGLang`'s `/server_info` dumps all arguments of the server: its keys, its command line. So
//! only fields on a list are shown, and within them nothing whose name is that of a secret.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{self, HeaderMap};
use serde_json::{Map, Value};

use crate::upstream::PrivateAnswer;

/// Fields of `/server_info` and `/model_info` that describe a model and how it is served.
const SHOWN: &[&str] = &[
    "architectures",
    "attention_backend",
    "chunked_prefill_size",
    "context_length",
    "disaggregation_mode",
    "dp_size",
    "dtype",
    "enable_dp_attention",
    "ep_size",
    "has_audio_understanding",
    "has_image_understanding",
    "is_embedding",
    "is_generation",
    "kv_cache_dtype",
    "load_balance_method",
    "max_model_len",
    "max_prefill_tokens",
    "max_queued_requests",
    "max_req_input_len",
    "max_running_requests",
    "max_total_num_tokens",
    "max_total_tokens",
    "mem_fraction_static",
    "model_id",
    "model_path",
    "model_type",
    "nnodes",
    "page_size",
    "pp_size",
    "preferred_sampling_params",
    "quantization",
    "random_seed",
    "reasoning_parser",
    "revision",
    "sampling_backend",
    "schedule_conservativeness",
    "schedule_policy",
    "served_model_name",
    "speculative_algorithm",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "speculative_num_steps",
    "status",
    "tokenizer_mode",
    "tokenizer_path",
    "tool_call_parser",
    "tp_size",
    "version",
    "weight_version",
];

/// What is shown of each data-parallel rank besides, measured by benchmarks.
const SHOWN_OF_RANK: &[&str] = &[
    "avg_spec_accept_length",
    "effective_max_running_requests_per_dp",
    "last_gen_throughput",
    "memory_usage",
    "step_time_dict",
];

/// Ends of the names of fields that hold secrets.
const SECRET: &[&str] = &[
    "api_key",
    "authorization",
    "command",
    "credential",
    "credentials",
    "passphrase",
    "passwd",
    "password",
    "private_key",
    "secret",
    "secret_key",
    "_token",
];

/// A worker's answer about itself: its status, the fields that clients may read, and no header
/// of the worker's.
pub(super) fn answer(answer: &PrivateAnswer) -> Response {
    let fields = serde_json::from_slice::<Map<String, Value>>(&answer.body);
    let declared = fields.is_ok() || is_json(&answer.headers);
    if !declared || answer.status == StatusCode::NO_CONTENT {
        return bare(answer);
    }
    let shown = fields.map_or_else(|_| Map::new(), shown);
    (answer.status, Json(shown)).into_response()
}

/// The status alone, where the body is no JSON object and could be anything.
pub(super) fn bare(answer: &PrivateAnswer) -> Response {
    (answer.status, "").into_response()
}

/// Masks every value whose name is that of a secret, at any depth.
pub(super) fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if names_secret(name) {
                    *value = "MASKED".into();
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

fn shown(fields: Map<String, Value>) -> Map<String, Value> {
    let mut kept = select(fields, &["internal_states"]);
    if let Some(states) = kept.get_mut("internal_states") {
        let ranks = std::mem::take(states).as_array().cloned();
        let ranks = ranks.into_iter().flatten().filter_map(|rank| match rank {
            Value::Object(fields) => Some(Value::Object(select(fields, SHOWN_OF_RANK))),
            _ => None,
        });
        *states = ranks.collect();
    }
    kept
}

fn select(fields: Map<String, Value>, besides: &[&str]) -> Map<String, Value> {
    let fields = fields
        .into_iter()
        .filter(|(name, _)| SHOWN.contains(&name.as_str()) || besides.contains(&name.as_str()));
    fields
        .map(|(name, mut value)| {
            redact(&mut value);
            (name, value)
        })
        .collect()
}

fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    name == "token" || SECRET.iter().any(|end| name.ends_with(end))
}

fn is_json(headers: &HeaderMap) -> bool {
    let declared = headers.get(header::CONTENT_TYPE);
    declared.is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;

    async fn read(status: u16, body: Value) -> (StatusCode, Value) {
        let response = answer(&PrivateAnswer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.to_string().into(),
        });
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn only_listed_fields_are_shown_also_of_ranks() {
        let state = json!({"api_key": "k", "tp_size": 2, "last_gen_throughput": 1.5, "env": "k",
            "memory_usage": {"weight": 1.0, "hf_token": "k"}});
        let info = json!({"api_key": "k", "launch_command": "--api-key k", "tp_size": 2,
            "served_model_name": "m", "internal_states": [state, "k"], "new_field": "k"});
        let shown = json!({"tp_size": 2, "served_model_name": "m", "internal_states": [
            {"tp_size": 2, "last_gen_throughput": 1.5,
             "memory_usage": {"weight": 1.0, "hf_token": "MASKED"}}]});
        assert_eq!(read(200, info).await, (StatusCode::OK, shown));
    }

    #[tokio::test]
    async fn answer_that_is_no_object_shows_only_its_status() {
        for body in [json!("k"), json!(["k"]), json!({"detail": "k"})] {
            let (status, shown) = read(500, body).await;
            assert_eq!(status, 500);
            assert!(shown.is_null() || shown == json!({}), "{shown}");
        }
    }

    #[tokio::test]
    async fn body_declared_as_json_that_is_none_is_an_empty_object_and_another_is_left_out() {
        for (declared, body) in [("application/json; charset=utf-8", "{}"), ("text/html", "")] {
            let response = answer(&PrivateAnswer {
                status: StatusCode::OK,
                headers: HeaderMap::from_iter([(header::CONTENT_TYPE, declared.parse().unwrap())]),
                body: "<k>".into(),
            });
            let shown = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(shown, body, "{declared}");
        }
    }

    #[test]
    fn secrets_are_masked_at_any_depth_also_in_lists() {
        let mut value = json!({"a": [{"api_key": "k"}, [{"b": {"password": "k"}}], "c"]});
        redact(&mut value);
        let masked = json!({"a": [{"api_key": "MASKED"}, [{"b": {"password": "MASKED"}}], "c"]});
        assert_eq!(value, masked);
    }

    #[test]
    fn field_named_like_a_secret_is_masked() {
        for name in [
            "api_key",
            "admin_api_key",
            "HF-Token",
            "password",
            "aws_secret",
            "token",
        ] {
            assert!(names_secret(name), "{name}");
        }
        for name in [
            "max_total_num_tokens",
            "tokenizer_path",
            "tokens",
            "key_count",
        ] {
            assert!(!names_secret(name), "{name}");
        }
    }
}
