//! Files of options and of workers.

mod problem;
mod yaml;

pub use problem::{FileError, Place, Problem};
pub(crate) use yaml::{Item, list};
