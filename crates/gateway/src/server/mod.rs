//! Who may come in: listening, the table of routes, and what every request passes.

mod auth;
mod cors;
mod door;
mod exposition;
mod info;
mod lanes;
mod loads;
mod reply;
mod request_id;
mod routes;
mod scrape;

pub(crate) use door::Gate;
pub(crate) use lanes::{Lanes, Shutdown};
pub(crate) use scrape::serve_metrics;
