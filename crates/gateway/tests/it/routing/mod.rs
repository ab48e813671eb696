//! How a worker is chosen, and what is said of it.

mod cache_reports;
mod kept_state;
mod policy_branches;
mod prompts;
mod why_routed;
mod zones;
