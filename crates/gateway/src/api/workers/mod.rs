//! The workers, as the routes about them show and change them.

mod body;
mod handlers;
mod view;

pub(super) use handlers::routes;
