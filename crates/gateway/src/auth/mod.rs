//! Which right a request comes with, and which right a route needs.

mod access;
mod authenticator;
mod credentials;

pub use access::Access;
pub(crate) use access::Principal;
pub(crate) use authenticator::Authenticator;
pub(crate) use credentials::carries_a_key;
