//! What trainers and operators ask of an engine, a row each.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::engine::mix;
use crate::server::http::error_response::{ErrorResponse, JSON, Shape};
use crate::server::parse::from_json;
use crate::server::runtime::pauses::PauseMode;
use crate::server::runtime::scheduler::AbortTarget;
use crate::server::runtime::state_error::StateError;
use crate::server::runtime::vocabulary;
use crate::server::runtime::worker::{AppState, Worker};

type Answer = Result<Response, ErrorResponse>;

/// A route, and what it does.
pub(crate) struct Row {
    pub(crate) path: &'static str,
    methods: MethodFilter,
    action: Action,
}

/// What a route does.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// Says this, and nothing else.
    Say(&'static str),
    /// Says this in JSON, and nothing else.
    SayJson(&'static str),
    /// Says that it succeeded.
    Succeed(&'static str),
    Ready,
    Pause,
    Continue,
    /// Takes the time of an update; says this.
    UpdateWeights(&'static str),
    SetWeightVersion,
    GetWeights,
    ReleaseMemory,
    SlowDown,
    SetInternalState,
    LoadAdapter,
    LoadAdapterFromTensors,
    UnloadAdapter,
    OpenSession,
    CloseSession,
}

const GET: MethodFilter = MethodFilter::GET;
const POST: MethodFilter = MethodFilter::POST;
const BOTH: MethodFilter = MethodFilter::GET.or(MethodFilter::POST);
const WRITE: MethodFilter = MethodFilter::POST.or(MethodFilter::PUT);

const ONLINE: &str = "Succeeded to update parameter online.";

/// Every such route.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    row("/", GET, Action::SayJson("\"SGLang is running\"")),
    row("/ping", GET, Action::Say("")),
    row("/ready", GET, Action::Ready),
    row("/pause_generation", POST, Action::Pause),
    row("/continue_generation", POST, Action::Continue),
    row("/update_weights_from_disk", POST, Action::UpdateWeights("Succeeded to update model weights.")),
    row("/update_weights_from_tensor", POST, Action::UpdateWeights(ONLINE)),
    row("/update_weights_from_distributed", POST, Action::UpdateWeights(ONLINE)),
    row("/update_weights_from_ipc", POST, Action::UpdateWeights("Succeeded to update model weights.")),
    row("/begin_weight_update", POST, Action::Succeed("Weight update has begun.")),
    row("/end_weight_update", POST, Action::Succeed("Weight update has ended.")),
    row("/init_weights_update_group", POST, Action::Succeed("Succeeded to initialize custom process group.")),
    row("/destroy_weights_update_group", POST, Action::Succeed("Succeeded to destroy custom process group.")),
    row("/init_weights_send_group_for_remote_instance", POST, Action::Succeed("Succeeded to initialize send group.")),
    row("/send_weights_to_remote_instance", POST, Action::Succeed("Succeeded to send weights.")),
    row("/weights_checker", BOTH, Action::Succeed("Success.")),
    row("/update_weight_version", POST, Action::SetWeightVersion),
    row("/get_weights_by_name", BOTH, Action::GetWeights),
    row("/release_memory_occupation", BOTH, Action::ReleaseMemory),
    row("/resume_memory_occupation", BOTH, Action::SayJson("null")),
    row("/slow_down", BOTH, Action::SlowDown),
    row("/set_internal_state", WRITE, Action::SetInternalState),
    row("/load_lora_adapter", POST, Action::LoadAdapter),
    row("/load_lora_adapter_from_tensors", POST, Action::LoadAdapterFromTensors),
    row("/unload_lora_adapter", POST, Action::UnloadAdapter),
    row("/open_session", BOTH, Action::OpenSession),
    row("/close_session", BOTH, Action::CloseSession),
    row("/start_profile", BOTH, Action::Say("Start profiling.\n")),
    row("/stop_profile", BOTH, Action::Say("Stop profiling. This will take some time.\n")),
    row("/freeze_gc", BOTH, Action::Say("Garbage collection frozen.\n")),
    row("/configure_logging", BOTH, Action::Say("")),
    row("/set_trace_level", BOTH, Action::Say("success")),
    row("/start_expert_distribution_record", BOTH, Action::Say("Start recording the expert distribution.\n")),
    row("/stop_expert_distribution_record", BOTH, Action::Say("Stop recording the expert distribution.\n")),
    row("/dump_expert_distribution_record", BOTH, Action::Say("Dump expert distribution record.\n")),
];

const fn row(path: &'static str, methods: MethodFilter, action: Action) -> Row {
    Row {
        path,
        methods,
        action,
    }
}

impl Row {
    /// What serves the route.
    pub(crate) fn handler(&self) -> MethodRouter<Arc<Worker>> {
        let action = self.action;
        let answer =
            async move |State(worker): AppState, body: Bytes| act(&worker, action, &body).await;
        on(self.methods, answer)
    }
}

#[derive(Deserialize)]
struct Pause {
    #[serde(default)]
    mode: PauseMode,
}

#[derive(Deserialize)]
struct WeightUpdate {
    #[serde(default)]
    weight_version: Option<String>,
    #[serde(default)]
    flush_cache: Option<bool>,
    #[serde(default)]
    abort_all_requests: Option<bool>,
    #[serde(default)]
    keep_pause: Option<bool>,
}

#[derive(Deserialize)]
struct WeightVersion {
    new_version: String,
    #[serde(default)]
    abort_all_requests: Option<bool>,
}

#[derive(Deserialize)]
struct NamedWeights {
    name: String,
    #[serde(default)]
    truncate_size: Option<u32>,
}

#[derive(Deserialize)]
struct Memory {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct SlowDown {
    forward_sleep_time: Option<f64>,
}

#[derive(Deserialize)]
struct InternalState {
    #[serde(rename = "server_args")]
    _server_args: IgnoredAny,
}

#[derive(Deserialize)]
struct Adapter {
    lora_name: String,
    #[serde(default)]
    lora_path: Option<String>,
}

#[derive(Deserialize)]
struct OpenSession {
    #[serde(rename = "capacity_of_str_len")]
    _capacity: u64,
    #[serde(default)]
    session_id: Option<String>,
}

#[derive(Deserialize)]
struct CloseSession {
    session_id: String,
}

/// Does what a row says.
async fn act(worker: &Arc<Worker>, action: Action, body: &[u8]) -> Answer {
    match action {
        Action::Say(text) => Ok(text.into_response()),
        Action::SayJson(text) => Ok(json_text(text)),
        Action::Succeed(message) => Ok(success(message)),
        Action::Ready if worker.accepts_requests() => Ok(StatusCode::OK.into_response()),
        Action::Ready => Ok(StatusCode::SERVICE_UNAVAILABLE.into_response()),
        Action::Pause => pause(worker, body),
        Action::Continue => Ok(go_on(worker)),
        Action::UpdateWeights(message) => update_weights(worker, message, body).await,
        Action::SetWeightVersion => set_weight_version(worker, body),
        Action::GetWeights => weights(worker, body),
        Action::ReleaseMemory => release_memory(worker, body),
        Action::SlowDown => slow_down(worker, body),
        Action::SetInternalState => {
            let _: InternalState = from_json(body, Shape::Flat)?;
            let ranks = worker.options.dp_size as usize;
            Ok(Json(vec![true; ranks]).into_response())
        }
        Action::LoadAdapter => load_adapter(worker, body),
        Action::LoadAdapterFromTensors => {
            let Adapter { lora_name, .. } = from_json(body, Shape::Flat)?;
            let loaded = worker.adapters().load(&lora_name, "__tensor__");
            Ok(adapters(worker, loaded))
        }
        Action::UnloadAdapter => unload_adapter(worker, body),
        Action::OpenSession => open_session(worker, body),
        Action::CloseSession => {
            let CloseSession { session_id } = from_json(body, Shape::Flat)?;
            worker.sessions().close(&session_id);
            Ok(StatusCode::OK.into_response())
        }
    }
}

fn json_text(text: &'static str) -> Response {
    ([(CONTENT_TYPE, JSON)], text).into_response()
}

fn success(message: &str) -> Response {
    Json(json!({"success": true, "message": message})).into_response()
}

fn state_of_generation(what: &str) -> Response {
    let message = format!("Generation {what} successfully.");
    Json(json!({"message": message, "status": "ok"})).into_response()
}

fn pause(worker: &Worker, body: &[u8]) -> Answer {
    let Pause { mode } = from_json(body, Shape::Flat)?;
    worker
        .scheduler
        .set_pauses(|pauses| pauses.requested = Some(mode));
    if mode == PauseMode::Abort {
        worker.abort(AbortTarget::All);
    }
    Ok(state_of_generation("paused"))
}

fn go_on(worker: &Worker) -> Response {
    worker
        .scheduler
        .set_pauses(|pauses| pauses.requested = None);
    state_of_generation("continued")
}

/// A weight update under way: nothing is generated until it is dropped.
struct Update<'w>(&'w Worker);

impl<'w> Update<'w> {
    fn begin(worker: &'w Worker) -> Self {
        worker.scheduler.set_pauses(|pauses| pauses.updates += 1);
        Self(worker)
    }
}

impl Drop for Update<'_> {
    fn drop(&mut self) {
        self.0.scheduler.set_pauses(|pauses| pauses.updates -= 1);
    }
}

async fn update_weights(worker: &Worker, message: &str, body: &[u8]) -> Answer {
    let update: WeightUpdate = from_json(body, Shape::Flat)?;
    if update.abort_all_requests == Some(true) {
        worker.abort(AbortTarget::All);
    }
    let under_way = Update::begin(worker);
    sleep(Duration::from_millis(worker.options.weight_update_ms)).await;
    if update.flush_cache != Some(false) {
        worker.scheduler.drop_cache();
    }
    let mut message = message.to_owned();
    if let Some(version) = update.weight_version {
        message.push_str(" Weight version updated to ");
        message.push_str(&version);
        message.push('.');
        worker.set_weight_version(version);
    }
    if update.keep_pause == Some(true) {
        let kept = PauseMode::InPlace;
        worker.scheduler.set_pauses(|pauses| {
            pauses.requested.get_or_insert(kept);
        });
    }
    drop(under_way);
    let content = json!({"success": true, "message": message, "num_paused_requests": 0});
    Ok(Json(content).into_response())
}

fn set_weight_version(worker: &Worker, body: &[u8]) -> Answer {
    let wanted: WeightVersion = from_json(body, Shape::Flat)?;
    if wanted.abort_all_requests == Some(true) {
        worker.abort(AbortTarget::All);
    }
    let message = format!("Weight version updated to {}", wanted.new_version);
    let content = json!({"success": true, "message": message, "new_version": wanted.new_version});
    worker.set_weight_version(wanted.new_version);
    Ok(Json(content).into_response())
}

/// Numbers that a parameter's name and the version of the weights determine.
fn weights(worker: &Worker, body: &[u8]) -> Answer {
    let wanted: NamedWeights = from_json(body, Shape::Flat)?;
    let label = format!("{}@{}", wanted.name, worker.weight_version());
    let seed = label
        .bytes()
        .fold(0, |hash, byte| mix(hash, u64::from(byte)));
    let count = u64::from(wanted.truncate_size.unwrap_or(100)).min(100_000);
    let values: Vec<f64> = (0..count)
        .map(|at| vocabulary::score(mix(seed, at)) - 0.5)
        .collect();
    let ranks = worker.options.dp_size as usize;
    Ok(match ranks {
        1 => Json(json!(values)).into_response(),
        _ => Json(vec![values; ranks]).into_response(),
    })
}

fn release_memory(worker: &Worker, body: &[u8]) -> Answer {
    let Memory { tags } = from_json(body, Shape::Flat)?;
    if tags.is_none_or(|tags| tags.iter().any(|tag| tag == "kv_cache")) {
        worker.scheduler.drop_cache();
    }
    Ok(json_text("null"))
}

fn slow_down(worker: &Worker, body: &[u8]) -> Answer {
    let SlowDown { forward_sleep_time } = from_json(body, Shape::Flat)?;
    let extra = Duration::try_from_secs_f64(forward_sleep_time.unwrap_or(0.0));
    let extra = extra.map_err(|error| ErrorResponse::bad_request(Shape::Nested, error))?;
    worker.scheduler.slow_down(extra);
    Ok(json_text("null"))
}

fn load_adapter(worker: &Worker, body: &[u8]) -> Answer {
    let Adapter {
        lora_name,
        lora_path,
    } = from_json(body, Shape::Flat)?;
    let path = lora_path
        .ok_or_else(|| ErrorResponse::bad_request(Shape::Flat, "lora_path: field required"))?;
    let loaded = worker.adapters().load(&lora_name, &path);
    Ok(adapters(worker, loaded))
}

fn unload_adapter(worker: &Worker, body: &[u8]) -> Answer {
    let Adapter { lora_name, .. } = from_json(body, Shape::Flat)?;
    let unloaded = worker.adapters().unload(&lora_name);
    Ok(adapters(worker, unloaded))
}

/// The adapters that are loaded now, and why the last change failed if it did.
fn adapters(worker: &Worker, changed: Result<(), StateError>) -> Response {
    let status = match changed {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::BAD_REQUEST,
    };
    let loaded: Value = json!(worker.adapters().all());
    let content = json!({
        "success": changed.is_ok(), "error_message": changed.err().map(|why| why.to_string()), "loaded_adapters": loaded,
    });
    (status, Json(content)).into_response()
}

fn open_session(worker: &Worker, body: &[u8]) -> Answer {
    let OpenSession { session_id, .. } = from_json(body, Shape::Flat)?;
    let id = session_id.unwrap_or_else(|| worker.new_rid().to_string());
    if !worker.sessions().open(&id) {
        let why = "Failed to open the session. Check if a session with the same id is still open.";
        return Err(ErrorResponse::bad_request(Shape::Nested, why));
    }
    Ok(Json(id).into_response())
}
