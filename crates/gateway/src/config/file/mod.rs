//! Files of options and of workers.

mod document;
mod problem;
mod yaml;

pub use document::Origin;
pub(crate) use document::{WithOrigins, over};
pub use problem::{FileError, Place, Problem};
pub(crate) use yaml::{Item, list};
