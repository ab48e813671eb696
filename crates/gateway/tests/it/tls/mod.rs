//! TLS on both sides: towards clients, towards workers, and certificates that change.

mod client;
mod collector;
mod front;
mod http2;
pub(crate) mod pki;
mod rotation;
mod server;
mod workers;
