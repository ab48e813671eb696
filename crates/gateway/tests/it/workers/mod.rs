//! Workers that come and go at run time.

mod models;
mod policies;
mod ranks;
mod registry;
mod turns;
mod waits;
