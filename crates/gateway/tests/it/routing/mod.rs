//! How a worker is chosen, and what is said of it.

mod policy_branches;
mod why_routed;
