//! What fuzz targets check (`fuzz/`, `make fuzz`): properties of everything that reads bytes of
//! others. Not part of a build for users.

pub use crate::api::properties::{exposition, worker_body};
pub use crate::proxy::properties::{body_fields, events};
pub use crate::upstream::response;

#[cfg(test)]
mod tests;
