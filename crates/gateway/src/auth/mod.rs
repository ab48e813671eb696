//! Where a request comes from, what its route needs, and the record of what was done.

mod access;
mod audit;
mod audit_log;
mod authenticator;
mod claims;
mod client_keys;
mod control_plane;
mod credentials;
mod digest;
mod issuer;
mod key_file;
mod key_limits;
mod key_set;
mod principal;
mod ring_provider;

pub use access::Access;
pub(crate) use audit::{Audit, AuditRecord, Call};
pub(crate) use audit_log::{AuditLog, AuditWriter};
pub(crate) use authenticator::{Authenticator, Credentials};
pub(crate) use client_keys::ClientKeys;
pub(crate) use credentials::carries_a_key;
pub(crate) use issuer::Issuer;
pub(crate) use key_limits::{KeyShare, TokenShare};
pub(crate) use principal::Principal;
