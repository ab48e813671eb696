//! Laws that every policy keeps.

mod policy_laws;
mod prefix_model;
