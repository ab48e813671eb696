//! The ports that routes are served at.

/// Where a client's connection comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// The gateway's own.
    Main,
    /// That of metrics.
    Metrics,
}
