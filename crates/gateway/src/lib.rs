//! The gateway itself: sockets, tasks and time around the decisions of `routing`.

pub mod config;

pub use config::Options;
