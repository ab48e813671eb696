//! The parts of a fleet together.

mod registry;
