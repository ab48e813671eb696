//! Why no worker was selected.

/// Why no worker was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SelectError {
    /// No worker takes requests, or not the one that was named.
    NoneReady,
    /// Every worker that takes requests has been tried.
    Exhausted,
    /// Every worker that takes requests is at its limit.
    AtCapacity,
    /// Other requests took the last shares, again and again.
    Raced,
    /// Several models are served, and the request names none.
    MissingModel,
    /// The model has prefill and decode workers alone, which do not answer this.
    OnlyPairs,
    /// The model that the request names is not served.
    UnknownModel,
    /// The client may not use every model that might serve it.
    NotGranted,
}
