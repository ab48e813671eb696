//! Sticky routing keys: which workers a key is assigned to, here and for several gateways.

mod assignments;
mod claim;
mod keys;
mod table;
#[cfg(test)]
mod tests;

pub use claim::{Assignment, Claim, SharedKey};
pub(crate) use keys::Lookup;
pub use table::KeyTable;
