//! The gateway itself: sockets, tasks and time around the decisions of `routing`.
//!
//! Reading order:
//! - [`app`] assembles everything once, accepts connections, and stops in steps;
//! - `server` runs the lanes, finds the route of a request and checks its key;
//! - `admission` limits requests in flight and per second;
//! - `proxy` carries an inference request to a worker and back, `api` answers all others;
//! - `balancer` selects the worker, by the policies of `routing`;
//! - `fleet` holds the workers: registration, health, availability;
//! - `upstream` sends HTTP to workers;
//! - `tls` makes certificates and trust of files, for clients and for workers.

mod admission;
mod api;
mod app;
mod auth;
mod balancer;
pub mod config;
mod cpu_pool;
mod endpoint;
mod error;
mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod header_lookup;
mod lane;
mod proxy;
mod recorder;
mod replicas;
mod server;
mod shutdown;
mod telemetry;
mod tls;
mod upstream;
mod via;
mod watched_file;
mod writer_thread;

pub use api::{Route, route_table};
pub use app::{Gateway, StartError};
pub use auth::Access;
pub use config::Options;
pub use telemetry::close_log;
