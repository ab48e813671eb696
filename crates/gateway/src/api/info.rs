//! What the gateway answers about itself and the models behind it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use super::disclosure;
use super::routes::Routes;
use super::state::SharedAnswers;
use crate::auth::Access;
use crate::balancer::Balancer;
use crate::error::Error;
use crate::fleet::{Fleet, Registry, Role, SourceReport, SourceState};
use crate::proxy::{FanOut, WorkerQuery};
use crate::shutdown::Shutdown;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/health", Access::Probe, "OK")
        .get("/liveness", Access::Probe, "OK")
        .get("/readiness", Access::Probe, readiness)
        .get("/ready", Access::Probe, ready)
        .get("/ping", Access::Probe, ping)
        .get("/", Access::Probe, root)
        .get("/health_generate", Access::Info, health_generate)
        .get("/model_info", Access::Info, model_info)
        .get("/get_model_info", Access::Info, model_info)
        .get("/server_info", Access::Info, server_info)
        .get("/get_server_info", Access::Info, server_info)
}

/// Whether requests can be served: probe this one before sending traffic.
async fn readiness(
    State(balancer): State<Arc<Balancer>>,
    State(registry): State<Arc<Registry>>,
    State(shutdown): State<Shutdown>,
) -> (StatusCode, Json<Value>) {
    let (status, mut body) = ready_for_requests(&balancer, &shutdown);
    let reports = registry.sources();
    if !reports.is_empty() {
        body["discovery"] = reports.iter().map(describe_source).collect();
    }
    (status, Json(body))
}

/// How a source of workers is doing.
fn describe_source(report: &SourceReport) -> (String, Value) {
    let (status, reason) = match report.state {
        SourceState::Starting => ("starting", None),
        SourceState::Following => ("ok", None),
        SourceState::Failing(reason) => ("failing", Some(reason)),
    };
    let mut shown =
        json!({"status": status, "for_secs": report.age.as_secs(), "workers": report.listed});
    if let Some(reason) = reason {
        shown["reason"] = reason.into();
    }
    if !report.failing.is_empty() {
        shown["failing"] = json!(report.failing);
    }
    (report.source.name().to_owned(), shown)
}

fn ready_for_requests(balancer: &Balancer, shutdown: &Shutdown) -> (StatusCode, Value) {
    let [regular, prefill, decode] = Role::ALL.map(|role| balancer.available_workers(role));
    let not_ready = |reason, missing: Option<Role>| {
        let mut not_ready = json!({"status": "not ready", "reason": reason});
        if let Some(role) = missing {
            not_ready["missing_role"] = role.as_str().into();
        }
        (StatusCode::SERVICE_UNAVAILABLE, not_ready)
    };
    let insufficient = "insufficient healthy workers";
    match (regular, prefill, decode) {
        _ if shutdown.is_lame_duck() => not_ready("draining", None),
        (0, 0, 0) => not_ready(insufficient, None),
        // A pair takes one of each.
        (0, 0, _) => not_ready(insufficient, Some(Role::Prefill)),
        (0, _, 0) => not_ready(insufficient, Some(Role::Decode)),
        _ => {
            let healthy = regular + prefill + decode;
            let total = balancer.fleet.workers().len();
            let ready =
                json!({"status": "ready", "healthy_workers": healthy, "total_workers": total});
            (StatusCode::OK, ready)
        }
    }
}

/// The same, in `SGLang`'s form: a status alone.
async fn ready(
    State(balancer): State<Arc<Balancer>>,
    State(shutdown): State<Shutdown>,
) -> StatusCode {
    ready_for_requests(&balancer, &shutdown).0
}

/// `SageMaker`'s health check, which `SGLang` passes also while it is paused.
async fn ping(State(fleet): State<Arc<Fleet>>, State(shutdown): State<Shutdown>) -> StatusCode {
    if fleet.ready_count() > 0 && !shutdown.is_lame_duck() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// What `SGLang` says there; some clients look whether anything is there at all.
async fn root() -> Json<&'static str> {
    Json("SGLang is running")
}

/// A generation by one worker, for all clients that ask within a second.
async fn health_generate(
    State(fleet): State<Arc<Fleet>>,
    State(fan_out): State<FanOut>,
    State(shared): State<Arc<SharedAnswers>>,
) -> Result<Response, Error> {
    let ask = async move {
        let question = WorkerQuery::generation(&["/health_generate"]);
        let answer = fan_out.ask_in_turn(&question).await;
        answer.ok().map(|answer| answer.status)
    };
    match shared.health_generate.get(ask).await.flatten() {
        Some(status) => Ok((status, "").into_response()),
        None if fleet.ready_count() == 0 => Err(Error::NoWorkers),
        None => Err(Error::NoWorkerResponse),
    }
}

async fn model_info(State(fan_out): State<FanOut>) -> Result<Response, Error> {
    first_answer(&fan_out, &["/model_info", "/get_model_info"]).await
}

async fn server_info(State(fan_out): State<FanOut>) -> Result<Response, Error> {
    first_answer(&fan_out, &["/server_info", "/get_server_info"]).await
}

/// The answer of the first ready worker that has a good one, to the first of these paths.
async fn first_answer(fan_out: &FanOut, paths: &'static [&'static str]) -> Result<Response, Error> {
    let answer = fan_out.ask_first(&WorkerQuery::information(paths)).await?;
    Ok(disclosure::answer(&answer))
}
