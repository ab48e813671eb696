//! Laws that every policy keeps, and the promises of each policy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod branches;
mod bucket;
mod cache_reports;
mod fair_queue;
mod load_policies;
mod policy_laws;
mod prefix_index;
mod sticky_policies;
mod support;
mod zones;
