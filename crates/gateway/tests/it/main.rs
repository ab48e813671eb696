//! The gateway over real sockets, against workers that do exactly what a test says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod auth;
mod config;
mod lifecycle;
mod pairs;
mod replicas;
mod replicas_keys;
mod replicas_limits;
mod replicas_queues;
mod replicas_sentinel;
mod replicas_slots;
mod resilience;
mod routing;
mod support;
mod tls;
mod traces;
mod traffic;
mod workers;
