//! Questions about text that no engine is needed for.

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::server::dialect::{messages, timestamp};
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::from_json;
use crate::server::runtime::worker::AppState;

#[derive(Deserialize)]
struct FunctionCalls {
    text: String,
    tools: Vec<Value>,
    #[serde(rename = "tool_call_parser")]
    _parser: String,
}

#[derive(Deserialize)]
struct Reasoning {
    text: String,
    #[serde(rename = "reasoning_parser")]
    _parser: String,
}

#[derive(Deserialize)]
struct Show {
    model: String,
}

pub(crate) async fn count_tokens(body: Bytes) -> Result<Json<Value>, ErrorResponse> {
    let tokens = messages::count_tokens(&body)?;
    Ok(Json(json!({"input_tokens": tokens})))
}

/// Calls of the form `<tool_call>{"name", "arguments"}</tool_call>`, whatever the parser.
pub(crate) async fn parse_function_call(body: Bytes) -> Result<Json<Value>, ErrorResponse> {
    let FunctionCalls { text, tools, .. } = from_json(&body, Shape::Flat)?;
    let (normal, found) = split(&text, "<tool_call>", "</tool_call>");
    let index = |name: &Value| {
        tools
            .iter()
            .position(|tool| tool["function"]["name"] == *name)
    };
    let call = |text: &&str| -> Option<Value> {
        let call: Map<String, Value> = serde_json::from_str(text).ok()?;
        let name = call.get("name")?;
        let arguments = call.get("arguments").unwrap_or(&Value::Null);
        Some(json!({
            "tool_index": index(name)?, "name": name, "parameters": arguments.to_string(),
        }))
    };
    let calls: Vec<Value> = found.iter().filter_map(call).collect();
    Ok(Json(json!({"normal_text": normal, "calls": calls})))
}

/// Reasoning between `<think>` and `</think>`, whatever the parser.
pub(crate) async fn separate_reasoning(body: Bytes) -> Result<Json<Value>, ErrorResponse> {
    let Reasoning { text, .. } = from_json(&body, Shape::Flat)?;
    let (normal, found) = split(&text, "<think>", "</think>");
    Ok(Json(
        json!({"reasoning_text": found.concat(), "text": normal}),
    ))
}

/// The text outside of marked pieces, and those pieces. A piece without its end lasts to the end
/// of the text.
fn split<'a>(mut text: &'a str, begin: &str, end: &str) -> (String, Vec<&'a str>) {
    let (mut outside, mut inside) = (String::new(), Vec::new());
    while let Some((before, rest)) = text.split_once(begin) {
        outside.push_str(before);
        let (piece, after) = rest.split_once(end).unwrap_or((rest, ""));
        inside.push(piece.trim());
        text = after;
    }
    outside.push_str(text);
    (outside.trim().to_owned(), inside)
}

pub(crate) async fn ollama_tags(State(worker): AppState) -> Json<Value> {
    let model = &worker.options.model;
    let details = json!({
        "format": "sglang", "family": family(model), "parameter_size": "unknown",
    });
    Json(json!({"models": [{
        "name": model, "model": model, "modified_at": timestamp::now(), "size": 0,
        "digest": format!("sha256:sglang{}", "0".repeat(58)), "details": details,
    }]}))
}

pub(crate) async fn ollama_show(
    State(worker): AppState,
    body: Bytes,
) -> Result<Json<Value>, ErrorResponse> {
    let Show { model } = from_json(&body, Shape::Flat)?;
    let family = family(&model);
    let context = format!("{family}.context_length");
    let length = worker.options.reported_context_length();
    Ok(Json(json!({
        "license": "",
        "modelfile": format!("FROM {model}\nPARAMETER num_ctx {length}\n"),
        "parameters": format!("num_ctx {length}"),
        "template": "",
        "modified_at": timestamp::now(),
        "details": {
            "parent_model": "", "format": "sglang", "family": family, "families": [family],
            "parameter_size": "unknown", "quantization_level": "",
        },
        "model_info": {
            "general.architecture": family, "general.name": model, context: length,
        },
        "capabilities": ["completion"],
    })))
}

fn family(model: &str) -> &str {
    model.rsplit('/').next().unwrap_or(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_pieces_are_taken_out_of_a_text() {
        let (outside, inside) = split("a <t>1</t> b<t>2</t>", "<t>", "</t>");
        assert_eq!((outside.as_str(), inside), ("a  b", vec!["1", "2"]));
        let (outside, inside) = split("<t>no end", "<t>", "</t>");
        assert_eq!((outside.as_str(), inside), ("", vec!["no end"]));
        assert_eq!(split("plain", "<t>", "</t>"), ("plain".to_owned(), vec![]));
    }
}
