//! A waiting line that is fair between keys, with two classes.

mod class;
mod flows;
mod queue;

pub use class::{Class, FairRules, FairShare};
pub use queue::{Arrival, FairQueue, Served, Ticket};
