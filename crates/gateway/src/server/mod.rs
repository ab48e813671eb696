//! Who may come in: listening, the table of routes, and what every request passes.

mod auth;
mod connection;
mod cors;
mod disclosure;
mod exposition;
mod in_progress;
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

pub(crate) use lanes::Lanes;
pub(crate) use metrics_listener::{MetricsPage, serve_metrics};
pub(crate) use service::{AppState, Service};
