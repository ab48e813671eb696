//! Laws that every policy keeps, and what each of them promises.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod branches;
mod by_key;
mod by_length;
mod by_load;
mod policy_laws;
mod prefix_model;
mod support;
