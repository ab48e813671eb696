//! The workers, as the routes about them show and change them.

mod body;
mod handlers;
#[cfg(any(test, fuzzing))]
pub(super) mod properties;
mod view;

pub(super) use handlers::routes;
