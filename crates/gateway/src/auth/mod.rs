//! Which right a request comes with, and which right a route needs.

mod access;
mod authenticator;

pub use access::Access;
pub(crate) use access::Principal;
pub(crate) use authenticator::Authenticator;
