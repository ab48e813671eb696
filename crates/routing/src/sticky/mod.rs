//! Sticky routing keys: which workers a key is assigned to.

mod assignments;
mod keys;

pub(crate) use keys::{Lookup, MAX_KEYS, StickyKeys};
