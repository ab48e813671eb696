//! Everything that can go wrong with a request, and how that reads in the dialect of its route.

mod envelope;
#[expect(clippy::module_inception, reason = "the type that the module is about")]
mod error;
#[cfg(test)]
mod tests;

pub(crate) use envelope::{ErrorContext, final_event};
pub(crate) use error::Error;
