//! Which route a request takes, and what is counted of it.

use std::sync::{Arc, OnceLock};

use http::Method;
use matchit::{InsertError, Router};

use super::port::Port;
use super::routes::Route;
use crate::auth::Access;
use crate::endpoint::{INFERENCE, Inference, Vendor};
use crate::error::Error;
use crate::telemetry::{Metrics, RouteMetrics};

/// What serves a route.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// One worker, by way of the relay.
    Relay(&'static Inference),
    /// One worker, for as long as the upgraded connection lasts.
    Tunnel(&'static Inference),
    /// axum.
    Api,
}

impl Target {
    fn of(row: &'static Inference) -> Self {
        match row.upgrade {
            None => Self::Relay(row),
            Some(_) => Self::Tunnel(row),
        }
    }
}

/// A route, what serves it, and what is counted of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) route: Route,
    pub(crate) target: Target,
    /// Made with the first request.
    metrics: OnceLock<Arc<RouteMetrics>>,
}

impl Entry {
    /// Whose API the route belongs to.
    pub(crate) fn vendor(&self) -> Vendor {
        match self.target {
            Target::Relay(row) | Target::Tunnel(row) => row.vendor,
            Target::Api => Vendor::OpenAi,
        }
    }
}

fn routes_of(row: &'static Inference) -> impl Iterator<Item = Route> {
    row.methods.iter().map(|method| Route {
        method: method.clone(),
        path: row.path,
        access: Access::Inference,
    })
}

/// All routes by path.
#[derive(Debug)]
pub(crate) struct RouteTable {
    paths: Router<Vec<Entry>>,
    /// What is counted of requests that match no route.
    other: Arc<RouteMetrics>,
    metrics: Arc<Metrics>,
}

impl RouteTable {
    /// The table of the relayed routes, which the gateway's own port has, and of those that axum
    /// serves.
    pub(crate) fn new(
        port: Port,
        api: Vec<Route>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, InsertError> {
        let rows = match port {
            Port::Main => &INFERENCE as &'static [Inference],
            Port::Metrics => &[],
        };
        let relayed = rows.iter().flat_map(|row| {
            let routes = routes_of(row);
            routes.map(|route| (route, Target::of(row)))
        });
        let api = api.into_iter().map(|route| (route, Target::Api));
        let mut table = Self {
            paths: Router::new(),
            other: Arc::new(metrics.route("other", "other")),
            metrics: Arc::clone(metrics),
        };
        for (route, target) in relayed.chain(api) {
            let path = route.path;
            let entry = Entry {
                route,
                target,
                metrics: OnceLock::new(),
            };
            match table.paths.at_mut(path) {
                Ok(found) => found.value.push(entry),
                Err(_) => table.paths.insert(path, vec![entry])?,
            }
        }
        Ok(table)
    }

    /// The routes of inference requests.
    pub(super) fn relayed() -> impl Iterator<Item = Route> {
        INFERENCE.iter().flat_map(routes_of)
    }

    /// The route of a request; a HEAD takes the way of a GET.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Result<&Entry, Error> {
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
        let methods = || found.value.iter().map(|entry| &entry.route.method);
        let at = methods().position(|known| known == wanted);
        at.map(|at| &found.value[at]).ok_or_else(|| {
            let mut allow: Vec<_> = methods().map(Method::as_str).collect();
            if allow.contains(&"GET") {
                allow.push("HEAD");
            }
            Error::MethodNotAllowed {
                method: method.to_string(),
                path: path.to_owned(),
                allow: allow.join(", "),
            }
        })
    }

    /// Whose API a path belongs to, be it a route or not.
    pub(crate) fn vendor(&self, path: &str) -> Vendor {
        let entries = self.paths.at(path).map(|found| found.value);
        let first = entries.ok().and_then(|entries| entries.first());
        first.map_or_else(|| Vendor::of_path(path), Entry::vendor)
    }

    /// What is counted of a route.
    pub(crate) fn metrics<'a>(&self, entry: &'a Entry) -> &'a Arc<RouteMetrics> {
        let Route { method, path, .. } = &entry.route;
        let make = || Arc::new(self.metrics.route(method.as_str(), path));
        entry.metrics.get_or_init(make)
    }

    /// What is counted of requests that match no route.
    pub(crate) fn other(&self) -> &Arc<RouteMetrics> {
        &self.other
    }
}
