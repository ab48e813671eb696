//! One device for prefill and decode: they take turns, and share one memory.

mod batch;
mod costs;
mod engine;
mod memory;
mod options;
mod page_table;
mod pass;
mod sequence;
#[cfg(test)]
mod tests;

pub(super) use engine::SharedEngine;
pub use options::{EngineModel, SharedOptions};
