//! The workers, as the routes about them show and change them.

mod body;
mod handlers;
#[cfg(any(test, fuzzing))]
pub(super) mod properties;
mod view;

pub(crate) use body::{has_field as has_worker_field, read_new as read_worker};
pub(super) use handlers::routes;
