//! Control of the engines behind the gateway.

mod answer;
mod handler;
mod table;

pub(super) use handler::routes;
