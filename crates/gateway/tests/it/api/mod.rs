//! Routes besides inference, and the rights that they need.

mod admin;
mod engine;
mod fleet_page;
mod rights;
mod routes;
