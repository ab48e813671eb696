//! Control of the engines behind the gateway.

mod answer;
mod handler;
mod role_switch;
mod table;

use super::routes::Routes;

/// The routes of engines.
pub(super) fn routes() -> Routes {
    handler::routes().merge(role_switch::routes())
}
