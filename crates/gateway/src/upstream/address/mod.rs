//! From a worker's name to a connected socket.

mod connect;
mod host;
mod lookups;
mod resolver;

pub(super) use connect::connect;
pub(super) use host::Host;
pub(crate) use host::LookupError;
pub(crate) use resolver::Resolver;
