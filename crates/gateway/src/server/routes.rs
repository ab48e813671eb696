//! The table of routes: one row each.

use std::sync::Arc;

use http::Method;
use matchit::Router;

use super::workers::{Change, Legacy};
use crate::endpoint::{INFERENCE, Inference};
use crate::error::Error;
use crate::telemetry::{Metrics, RouteMetrics};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Public,
    /// Whoever has the gateway's key, when it has one.
    ApiKey,
}

/// What a route does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// Forwarded to one worker.
    Forward(&'static Inference),
    /// Asked of all workers, because only one of them knows.
    Broadcast,
    /// The first ready worker's answer to the first of these paths that it has.
    AskFirst(&'static [&'static str]),
    Alive,
    Readiness,
    Models,
    Workers,
    /// One worker.
    Worker,
    /// The register of workers.
    Registry(Change),
    /// The same, as it was before 0.3.
    Legacy(Legacy),
    Loads,
    FlushCache,
    /// The workers are told to give up a request.
    Abort,
    Decisions,
    /// What limits are in force.
    Limits,
    Explain,
    EngineMetrics,
    /// A route of the field that this gateway does not have.
    NotImplemented(&'static str),
}

use Access::{ApiKey, Public};
use Action::{
    Abort, Alive, AskFirst, Broadcast, Decisions, EngineMetrics, Explain, FlushCache, Forward,
    Limits, Loads, Models, NotImplemented, Readiness, Registry, Worker, Workers,
};

/// Routes besides the inference endpoints.
const ROUTES: [(&str, &Method, Access, Action); 29] = [
    ("/health", &Method::GET, Public, Alive),
    ("/liveness", &Method::GET, Public, Alive),
    ("/readiness", &Method::GET, Public, Readiness),
    (
        "/health_generate",
        &Method::GET,
        Public,
        AskFirst(&["/health_generate"]),
    ),
    (
        "/model_info",
        &Method::GET,
        Public,
        AskFirst(&["/model_info", "/get_model_info"]),
    ),
    (
        "/get_model_info",
        &Method::GET,
        Public,
        AskFirst(&["/model_info", "/get_model_info"]),
    ),
    (
        "/server_info",
        &Method::GET,
        Public,
        AskFirst(&["/server_info", "/get_server_info"]),
    ),
    (
        "/get_server_info",
        &Method::GET,
        Public,
        AskFirst(&["/server_info", "/get_server_info"]),
    ),
    ("/v1/models", &Method::GET, Public, Models),
    ("/engine_metrics", &Method::GET, Public, EngineMetrics),
    ("/v1/responses/{id}", &Method::GET, ApiKey, Broadcast),
    (
        "/v1/responses/{id}",
        &Method::DELETE,
        ApiKey,
        NotImplemented("deleting a stored response"),
    ),
    (
        "/v1/responses/{id}/cancel",
        &Method::POST,
        ApiKey,
        Broadcast,
    ),
    ("/workers", &Method::GET, ApiKey, Workers),
    ("/workers/{id}", &Method::GET, ApiKey, Worker),
    ("/workers", &Method::POST, ApiKey, Registry(Change::Add)),
    ("/workers/{id}", &Method::PUT, ApiKey, Registry(Change::Put)),
    (
        "/workers/{id}",
        &Method::PATCH,
        ApiKey,
        Registry(Change::Patch),
    ),
    (
        "/workers/{id}",
        &Method::DELETE,
        ApiKey,
        Registry(Change::Remove),
    ),
    (
        "/add_worker",
        &Method::POST,
        ApiKey,
        Action::Legacy(Legacy::Add),
    ),
    (
        "/remove_worker",
        &Method::POST,
        ApiKey,
        Action::Legacy(Legacy::Remove),
    ),
    (
        "/list_workers",
        &Method::GET,
        ApiKey,
        Action::Legacy(Legacy::List),
    ),
    ("/get_loads", &Method::GET, ApiKey, Loads),
    ("/v1/loads", &Method::GET, ApiKey, Loads),
    ("/flush_cache", &Method::POST, ApiKey, FlushCache),
    ("/abort_request", &Method::POST, ApiKey, Abort),
    ("/debug/limits", &Method::GET, ApiKey, Limits),
    ("/debug/decisions", &Method::GET, ApiKey, Decisions),
    ("/route/explain", &Method::POST, ApiKey, Explain),
];

/// A route, and what is counted of it.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: &'static Method,
    pub(super) access: Access,
    pub(super) action: Action,
    pub(super) metrics: Arc<RouteMetrics>,
}

/// All routes by path.
#[derive(Debug)]
pub(super) struct Routes {
    paths: Router<Vec<Route>>,
    /// What is counted of requests that match no route.
    other: Arc<RouteMetrics>,
}

impl Routes {
    pub(super) fn new(metrics: &Metrics) -> Result<Self, matchit::InsertError> {
        let inference = INFERENCE
            .iter()
            .map(|row| (row.path, &Method::POST, ApiKey, Forward(row)));
        let mut routes = Self {
            paths: Router::new(),
            other: Arc::new(metrics.route("other", "other")),
        };
        for (path, method, access, action) in inference.chain(ROUTES) {
            let metrics = Arc::new(metrics.route(method.as_str(), path));
            let route = Route {
                method,
                access,
                action,
                metrics,
            };
            match routes.paths.at_mut(path) {
                Ok(found) => found.value.push(route),
                Err(_) => routes.paths.insert(path, vec![route])?,
            }
        }
        Ok(routes)
    }

    /// The route of a request; a HEAD takes the way of a GET.
    pub(super) fn find(&self, method: &Method, path: &str) -> Result<&Route, Error> {
        let Ok(found) = self.paths.at(path) else {
            return Err(Error::UnknownUrl {
                method: method.to_string(),
                path: path.to_owned(),
            });
        };
        let wanted = if *method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        found
            .value
            .iter()
            .find(|route| route.method == wanted)
            .ok_or_else(|| {
                let mut allow: Vec<_> = found
                    .value
                    .iter()
                    .map(|route| route.method.as_str())
                    .collect();
                if allow.contains(&"GET") {
                    allow.push("HEAD");
                }
                let (method, path) = (method.to_string(), path.to_owned());
                Error::MethodNotAllowed {
                    method,
                    path,
                    allow: allow.join(", "),
                }
            })
    }

    /// What is counted of requests that match no route.
    pub(super) fn other(&self) -> &Arc<RouteMetrics> {
        &self.other
    }
}
