//! Limits that several gateways keep together: what one of them holds of each, in advance.
//!
//! Limits on requests at a time are slots, which a gateway may use until it gives them up:
//! [`SlotPlanner`]. Queues are bounded together without anything in advance, and corrected:
//! [`QueuePlanner`]. The rest of this page is about rates.
//!
//! A server that all reach has one bucket per limit, filled by its own clock (the generic cell rate
//! algorithm). A gateway takes units out of it before they are needed, and keeps them as its quota:
//! a request is let in by what is held, at once, and refused when nothing is. Whatever is used has
//! been taken before, so the sum over gateways cannot exceed the limit; only what a request takes above
//! a full quota, or tokens above an estimate, are owed, and paid with the next ones taken. Each holds
//! what it uses until the next exchange, twice, and at least its part of half the limit, for the
//! request after a silence; the shared bucket holds the other half. What is above that goes back;
//! all of it, when another gateway has too little and this one no requests.
//! Without the server a gateway fills its quota itself, by the part of the limit that is its own.
//!
//! Pure: a [`Planner`] decides by numbers, and the caller moves the units.

mod bucket;
mod planner;
mod queue_planner;
#[cfg(test)]
mod queue_stage;
#[cfg(test)]
mod queue_tests;
mod shared_limits;
mod shared_queue;
mod slot_planner;
#[cfg(test)]
mod slot_tests;
mod slots;
#[cfg(test)]
mod tests;

pub use bucket::{Bucket, Held, Quota, RateLimit};
pub use planner::{Ask, Grant, Part, Planner};
pub use queue_planner::{QueueAnswer, QueueAsk, QueuePlanner};
pub use shared_limits::SharedLimits;
pub use shared_queue::{QueueRoom, QueueUse, SharedQueue};
pub use slot_planner::{GRACE, LEASE, SlotAsk, SlotGrant, SlotPlanner};
pub use slots::{SlotCount, SlotUse, Slots};
