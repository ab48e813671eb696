//! Who may come in: listening, the table of routes, and what every request passes.

mod admission;
mod auth;
mod cors;
mod disclosure;
mod exposition;
mod info;
mod lanes;
mod loads;
mod metrics_listener;
mod request_id;
mod response;
mod routes;
mod service;
mod worker_body;
mod workers;

pub(crate) use admission::Admission;
pub(crate) use lanes::Lanes;
pub(crate) use metrics_listener::serve_metrics;
pub(crate) use service::{AppState, Service};
