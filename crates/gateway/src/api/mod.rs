//! What the gateway answers itself, besides the relay: one axum router per group of routes.

mod control;
mod cors;
mod debug;
mod disclosure;
mod engine;
mod engine_metrics;
mod exposition;
mod extract;
mod info;
mod models;
mod not_carried;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod route_table;
mod routes;
mod scope;
mod shared_answer;
mod state;
mod workers;

use crate::config::EngineControl;

pub(crate) use cors::Cors;
pub(crate) use route_table::{Entry, RouteTable, Target};
pub use routes::Route;
pub(crate) use routes::Routes;
pub(crate) use state::{ApiState, Caller};
pub(crate) use workers::{has_worker_field, read_worker};

/// The routes that axum serves.
pub(crate) fn routes(engine_control: EngineControl) -> Routes {
    let routes = all_but_engine();
    match engine_control {
        EngineControl::On => routes.merge(engine::routes()),
        EngineControl::Off => routes,
    }
}

fn all_but_engine() -> Routes {
    info::routes()
        .merge(models::routes())
        .merge(engine_metrics::routes())
        .merge(control::routes())
        .merge(control::cache_routes())
        .merge(workers::routes())
        .merge(debug::routes())
        .merge(not_carried::routes())
}

/// Every route of the gateway, relayed ones first.
pub fn route_table() -> Vec<Route> {
    let api = routes(EngineControl::On).into_list();
    RouteTable::relayed().chain(api).collect()
}
