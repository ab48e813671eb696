//! The one provider of cryptography.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

/// Ring, for every configuration: one that is made without a provider panics as soon as another
/// library brings a second one.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
