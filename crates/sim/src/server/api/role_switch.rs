//! `/pd_role_switch`: an idle worker of a pair takes the other role.

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::options::Role;
use crate::server::disaggregation::state::bootstrap_listener;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::from_json;
use crate::server::runtime::worker::{AppState, Worker};

#[derive(Deserialize)]
struct RoleSwitch {
    new_role: Role,
    #[serde(default)]
    decode_cuda_graph_memory_gb: Option<f64>,
}

pub(crate) async fn switch_role(
    State(worker): AppState,
    body: Bytes,
) -> Result<Json<Value>, ErrorResponse> {
    let wanted: RoleSwitch = from_json(&body, Shape::Flat)?;
    let refuse = |why: &str| Err(ErrorResponse::bad_request(Shape::Flat, why));
    let (now, new) = (worker.disaggregation.role(), wanted.new_role);
    if !worker.options.enable_pd_role_switch {
        return refuse("PD role switch is not enabled: start with --enable-pd-role-switch");
    }
    if now == Role::Null || new == Role::Null {
        return refuse("PD role switch is between prefill and decode");
    }
    if now == new {
        return Ok(switched(new));
    }
    if !worker.is_idle() {
        return refuse("PD role switch failed: instance is not idle");
    }
    if new == Role::Decode && wanted.decode_cuda_graph_memory_gb.is_none() {
        return refuse("decode_cuda_graph_memory_gb is required to switch to decode");
    }
    change(&worker, new)?;
    Ok(switched(new))
}

fn change(worker: &Worker, role: Role) -> Result<(), ErrorResponse> {
    let listener = bootstrap_listener(&worker.options, role);
    let listener = listener.map_err(|error| ErrorResponse::internal(Shape::Flat, error))?;
    let changed = worker.disaggregation.set_role(role, listener);
    changed.map_err(|error| ErrorResponse::internal(Shape::Flat, error))?;
    let source = worker.options.prompt_source(role);
    worker.scheduler.set_prompt_source(source);
    Ok(())
}

fn switched(role: Role) -> Json<Value> {
    let message = format!("The role is {}.", role.as_str());
    Json(json!({"success": true, "message": message, "role": role.as_str()}))
}
