//! What part a worker takes in answering a request.

/// The part a worker takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Prefill and decode both.
    #[default]
    Regular,
}

impl Role {
    /// The name that `worker_type` and metric labels use.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
        }
    }
}
