//! The gateway over real sockets, against workers that do exactly what a test says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod bad_input;
mod blame;
mod bodies;
mod breakers;
mod chaos;
mod clients;
mod fleet_health;
mod headers;
mod http2;
mod limits;
mod loops;
mod policy_branches;
mod retries;
mod rights;
mod routes;
mod shutdown;
mod streaming;
mod support;
mod why_routed;
mod worker_faults;
mod worker_policies;
mod worker_turns;
mod worker_waits;
mod workers;
