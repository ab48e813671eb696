//! What the gateway answers itself, besides the relay: one axum router per group of routes.

mod control;
mod cors;
mod dashboard;
mod debug;
mod disclosure;
mod engine;
mod engine_metrics;
mod exposition;
mod extract;
mod info;
mod models;
mod not_carried;
mod port;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod route_table;
mod routes;
mod scope;
mod shared_answer;
mod state;
mod workers;

use crate::config::{EngineControl, FleetPage, ServerSection};

pub(crate) use cors::Cors;
pub(crate) use port::Port;
pub(crate) use route_table::{Entry, RouteTable, Target};
pub use routes::Route;
pub(crate) use routes::Routes;
pub(crate) use state::{ApiState, Caller};
pub(crate) use workers::{has_worker_field, read_worker};

/// The routes that axum serves at a port.
pub(crate) fn routes(port: Port, options: &ServerSection) -> Routes {
    match port {
        Port::Main => {
            let mut routes = all_but_switched();
            if options.engine_control == EngineControl::On {
                routes = routes.merge(engine::routes());
            }
            if options.fleet_page == FleetPage::Main {
                routes = routes.merge(dashboard::routes());
            }
            routes
        }
        Port::Metrics => dashboard::routes()
            .merge(workers::routes())
            .merge(control::cache_routes())
            .merge(debug::reason_routes()),
    }
}

/// Those that no option takes away.
fn all_but_switched() -> Routes {
    info::routes()
        .merge(models::routes())
        .merge(engine_metrics::routes())
        .merge(control::routes())
        .merge(control::cache_routes())
        .merge(workers::routes())
        .merge(debug::routes())
        .merge(debug::reason_routes())
        .merge(not_carried::routes())
}

/// Every route of the gateway, relayed ones first.
pub fn route_table() -> Vec<Route> {
    let api = all_but_switched()
        .merge(engine::routes())
        .merge(dashboard::routes());
    RouteTable::relayed().chain(api.into_list()).collect()
}
