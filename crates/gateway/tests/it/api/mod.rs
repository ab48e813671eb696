//! Routes besides inference, and the rights that they need.

mod admin;
mod engine;
mod rights;
mod routes;
