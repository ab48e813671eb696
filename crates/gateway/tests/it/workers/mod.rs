//! Workers that come and go at run time.

mod policies;
mod registry;
mod turns;
mod waits;
