//! The page that shows the fleet, at `/debug/fleet`, and the data that it is made from.

mod feed;
mod handlers;
mod page;
mod snapshot;

pub(super) use feed::Feed;
pub(super) use handlers::routes;
