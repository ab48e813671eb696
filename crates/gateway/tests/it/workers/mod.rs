//! Workers that come and go at run time.

mod discovery_file;
mod drained;
mod loads;
mod models;
mod names;
mod policies;
mod published_loads;
mod ranks;
mod registry;
mod turns;
mod waits;
