//! Who may come in: listening, the table of routes, and what every request passes.

mod admission;
mod auth;
mod cors;
mod disclosure;
mod door;
mod exposition;
mod info;
mod lanes;
mod loads;
mod reply;
mod request_id;
mod routes;
mod scrape;
mod shutdown;
mod worker_body;
mod workers;

pub(crate) use admission::Admission;
pub(crate) use door::{Gate, State};
pub(crate) use lanes::Lanes;
pub(crate) use scrape::serve_metrics;
pub(crate) use shutdown::Shutdown;
