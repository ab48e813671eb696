//! Routes besides inference, and the rights that they need.

mod admin;
mod rights;
mod routes;
