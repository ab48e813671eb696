//! The routes that show and change the registry of workers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header;
use serde_json::{Value, json};

use super::body::{self, Fields};
use super::view::describe;
use crate::api::extract::{WorkerById, WorkerJson, parameter};
use crate::api::routes::Routes;
use crate::auth::Access;
use crate::config::{Secret, WorkerUrl};
use crate::error::Error;
use crate::fleet::{
    Fleet, Labels, PendingRegistration, RegistrationError, Registry, Role, StartupError, Worker,
    WorkerSpec, drain_worker, undrain_worker,
};
use crate::shutdown::Shutdown;

/// The change is accepted; what remains to be done is done without the client.
type Accepted = (StatusCode, Json<Value>);

pub(crate) fn routes() -> Routes {
    Routes::default()
        .get("/workers", Access::Control, list)
        .get("/workers/{id}", Access::Control, show)
        .post("/workers", Access::Control, add)
        .put("/workers/{id}", Access::Control, put)
        .patch("/workers/{id}", Access::Control, patch)
        .delete("/workers/{id}", Access::Control, remove)
        .post("/workers/{id}/drain", Access::Control, drain)
        .post("/workers/{id}/undrain", Access::Control, undrain)
        .post("/add_worker", Access::Control, add_and_wait)
        .post("/remove_worker", Access::Control, remove_by_url)
        .get("/list_workers", Access::Control, list_urls)
}

/// Why the registry refuses, as a client reads it.
pub(super) fn refusal(why: RegistrationError) -> Error {
    match why {
        RegistrationError::Invalid(why) => Error::WorkerSpec(why),
        RegistrationError::Exists { .. } => Error::WorkerExists(why.to_string()),
        RegistrationError::Removed(id) => Error::WorkerNotFound(id.to_string()),
        RegistrationError::Draining { .. } => Error::WorkerLeaving(why.to_string()),
        RegistrationError::Stopping => Error::RegistrationFailed(why.to_string()),
    }
}

/// Every worker, or those of the model that the query names.
async fn list(State(registry): State<Arc<Registry>>, RawQuery(query): RawQuery) -> Json<Value> {
    let model = parameter(query.as_deref(), "model");
    let all = registry.fleet().workers();
    let of_model = |worker: &&Arc<Worker>| {
        let wanted = model.as_ref();
        wanted.is_none_or(|model| worker.endpoint.model_info.load().model == *model)
    };
    // Ranks are listed under the first one of their worker.
    let listed = all.iter().filter(|it| it.is_first_rank());
    let workers: Vec<_> = listed.filter(of_model).collect();
    let count = |role| {
        workers
            .iter()
            .filter(|worker| worker.role() == role)
            .count()
    };
    let stats = json!({
        "prefill_count": count(Role::Prefill),
        "decode_count": count(Role::Decode),
        "regular_count": count(Role::Regular),
    });
    let described = workers.iter().map(|worker| describe(&registry, worker));
    let described: Vec<_> = described.collect();
    Json(json!({"workers": described, "total": workers.len(), "stats": stats}))
}

/// One worker.
async fn show(
    State(registry): State<Arc<Registry>>,
    WorkerById(worker): WorkerById,
) -> Json<Value> {
    Json(describe(&registry, &worker))
}

async fn add(
    State(registry): State<Arc<Registry>>,
    WorkerJson(fields): WorkerJson,
) -> Result<impl IntoResponse, Error> {
    let url = body::url(&fields).map_err(refusal)?;
    let build = |spec: &WorkerSpec, reported: &Labels| body::read(&fields, spec, reported);
    let worker = registry.add(&url, build).map_err(refusal)?;
    let location = format!("/workers/{}", worker.id);
    let shown = json!({
        "status": "accepted",
        "worker_id": worker.id.to_string(),
        "url": worker.url().as_str(),
        "location": location,
        "message": "Worker addition queued for background processing",
    });
    Ok((
        StatusCode::ACCEPTED,
        [(header::LOCATION, location)],
        Json(shown),
    ))
}

/// Replaces all settings if the body has `url`; otherwise as `PATCH`.
async fn put(
    State(registry): State<Arc<Registry>>,
    WorkerById(worker): WorkerById,
    WorkerJson(fields): WorkerJson,
) -> Result<Accepted, Error> {
    let replaces = fields.get("url").is_some_and(|url| !url.is_null());
    if replaces {
        let bare = WorkerSpec::new(worker.url().clone());
        update(&registry, &worker, |_, reported| {
            body::read(&fields, &bare, reported)
        })
    } else {
        update(&registry, &worker, |spec, reported| {
            body::read(&fields, spec, reported)
        })
    }
}

async fn patch(
    State(registry): State<Arc<Registry>>,
    WorkerById(worker): WorkerById,
    WorkerJson(fields): WorkerJson,
) -> Result<Accepted, Error> {
    update(&registry, &worker, |spec, reported| {
        body::read(&fields, spec, reported)
    })
}

fn update(
    registry: &Registry,
    worker: &Arc<Worker>,
    change: impl FnOnce(&WorkerSpec, &Labels) -> Result<WorkerSpec, RegistrationError>,
) -> Result<Accepted, Error> {
    registry.update(worker, change).map_err(refusal)?;
    let shown = json!({
        "status": "accepted",
        "worker_id": worker.id.to_string(),
        "message": "Worker update queued for background processing",
    });
    Ok((StatusCode::ACCEPTED, Json(shown)))
}

async fn remove(State(registry): State<Arc<Registry>>, WorkerById(worker): WorkerById) -> Accepted {
    registry.remove(&worker);
    let shown = json!({
        "status": "accepted",
        "worker_id": worker.id.to_string(),
        "in_flight": worker.load.own_requests(),
        "message": "Worker removal queued for background processing",
    });
    (StatusCode::ACCEPTED, Json(shown))
}

/// No new requests for a worker, which stays in the fleet.
async fn drain(
    State(registry): State<Arc<Registry>>,
    WorkerById(worker): WorkerById,
) -> Result<Json<Value>, Error> {
    check_stays(&worker)?;
    drain_worker(registry.fleet(), &worker);
    Ok(status_of(&worker))
}

/// It gets requests again.
async fn undrain(
    State(registry): State<Arc<Registry>>,
    WorkerById(worker): WorkerById,
) -> Result<Json<Value>, Error> {
    check_stays(&worker)?;
    undrain_worker(registry.fleet(), &worker);
    Ok(status_of(&worker))
}

/// Refuses to change a worker that is being removed.
fn check_stays(worker: &Worker) -> Result<(), Error> {
    if worker.is_draining() {
        let (url, id) = (worker.url().to_string(), worker.id);
        return Err(refusal(RegistrationError::Draining { url, id }));
    }
    Ok(())
}

fn status_of(worker: &Worker) -> Json<Value> {
    Json(json!({
        "worker_id": worker.id.to_string(),
        "url": worker.url().as_str(),
        "status": worker.availability().status(),
        "in_flight": worker.load.own_requests(),
    }))
}

/// An error of the routes from before 0.3: plain text.
struct PlainText(Error);

impl<E: Into<Error>> From<E> for PlainText {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for PlainText {
    fn into_response(self) -> Response {
        Error::Legacy(Box::new(self.0)).into_response()
    }
}

async fn list_urls(State(fleet): State<Arc<Fleet>>) -> Json<Value> {
    let workers = fleet.workers();
    let listed = workers.iter().filter(|it| it.is_first_rank());
    let urls: Vec<_> = listed.map(|worker| worker.url().as_str()).collect();
    Json(json!({"urls": urls}))
}

async fn remove_by_url(
    State(registry): State<Arc<Registry>>,
    RawQuery(query): RawQuery,
) -> Result<String, PlainText> {
    let url = url(query.as_deref())?;
    let worker = registry.fleet().find(url.as_str());
    let unknown = || Error::WorkerSpec(format!("Worker {url} not found"));
    let worker = worker.ok_or_else(unknown)?;
    registry.remove(&worker);
    Ok(format!("Successfully removed worker: {}", worker.url()))
}

/// Adds a worker and answers once it is ready.
async fn add_and_wait(
    State(registry): State<Arc<Registry>>,
    State(shutdown): State<Shutdown>,
    RawQuery(query): RawQuery,
) -> Result<String, PlainText> {
    let url = url(query.as_deref())?;
    let key = parameter(query.as_deref(), "api_key").filter(|key| !key.is_empty());
    let key = key
        .map(|key| body::key(&key))
        .transpose()
        .map_err(refusal)?;
    // A gateway that stops does not wait for workers.
    tokio::select! {
        added = wait(&registry, &url, key) => added?,
        () = shutdown.draining() => return Err(refusal(RegistrationError::Stopping).into()),
    }
    Ok(format!("Successfully added worker: {url}"))
}

async fn wait(registry: &Arc<Registry>, url: &WorkerUrl, key: Option<Secret>) -> Result<(), Error> {
    let build = |spec: &WorkerSpec, _: &Labels| -> Result<_, RegistrationError> {
        Ok(WorkerSpec {
            key: key.or_else(|| spec.key.clone()),
            ..spec.clone()
        })
    };
    let pending = PendingRegistration::start(registry, url, build).map_err(refusal)?;
    let worker = pending.worker().url().to_string();
    let seconds = registry.startup_timeout().as_secs();
    let late = |fate| format!("did not become ready within {seconds} s, and {fate}");
    pending.wait().await.map_err(|why| Error::NotUp {
        worker,
        why: match why {
            StartupError::TimedOut => late("was not added"),
            StartupError::TimedOutButShared => late("is still listed: others registered it"),
            StartupError::Removed => "was removed before it became ready".to_owned(),
        },
    })
}

/// The URL in a query.
fn url(query: Option<&str>) -> Result<WorkerUrl, Error> {
    let url = parameter(query, "url").map(Value::from);
    let fields = Fields::from_iter(url.map(|url| ("url".to_owned(), url)));
    body::url(&fields).map_err(refusal)
}
