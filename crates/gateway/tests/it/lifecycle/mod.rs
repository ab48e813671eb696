//! Start and stop.

mod shutdown;
