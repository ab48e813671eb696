//! Why a request waits no longer, and was not served.

/// Why a request waits no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueError {
    /// Too many wait already.
    Full,
    /// Too many wait, and another request goes before it.
    PushedOut,
    /// The wait took too long.
    Timeout,
}

impl QueueError {
    /// The `result` label of metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "refused",
            Self::PushedOut => "pushed_out",
            Self::Timeout => "timed_out",
        }
    }
}
