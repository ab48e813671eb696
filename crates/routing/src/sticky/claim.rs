//! Routing keys that several gateways assign alike.
//!
//! A server that all reach has the assignment of each key, with a version. A gateway decides by
//! what it knows, and claims afterwards: the key, its workers, and the version that it has seen.
//! The server agrees where that is the version it has, and gives the assignment a higher one; so
//! of several gateways that assign a key at a time the first one decides, and the others take its
//! assignment over. All changes of a key are in one order, by versions, and a gateway never goes
//! back to a lower one: however late or often news come, all end with the last assignment.
//!
//! A server that has lost what it had gets it back: a gateway that knows a higher version is right.

use std::time::Duration;

/// The workers of a key, as all gateways know them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// The hashes of their URLs, the earlier one first; 0 for none.
    pub workers: [u64; 2],
    /// A later assignment has a higher one.
    pub version: u64,
}

/// What a gateway asks others to agree to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The hash of the key.
    pub key: u64,
    /// Its workers, and the version that this gateway has seen.
    pub assignment: Assignment,
    /// Whether its workers are others than those of this version.
    pub changed: bool,
    /// How long the assignment is to be kept, unless it is used again.
    pub kept: Duration,
}

/// A key as the server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedKey {
    /// The hash of the key.
    pub key: u64,
    /// Its workers.
    pub assignment: Assignment,
    /// How long it is kept, unless it is used again.
    pub left: Duration,
}
