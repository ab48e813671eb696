//! Workers that come and go at run time.

mod models;
mod policies;
mod registry;
mod turns;
mod waits;
