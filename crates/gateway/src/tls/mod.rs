//! Certificates, keys and trust, made of PEM files and made anew when these change. Always
//! rustls with ring, which is passed explicitly.

mod error;
mod pem;
mod provider;
mod watched;

pub(crate) use error::TlsError;
pub(crate) use pem::{pair, roots};
pub(crate) use provider::provider;
pub(crate) use watched::{Contents, Look, Watched};
