//! What a worker does, and what it loses.

/// A step of a worker, with its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The prompt is prefilled; so many of its tokens were cached.
    FirstToken { request: usize, cached: u64 },
    /// The last token is generated.
    Finished(usize),
}

/// Requests of a worker at its death.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Requests without a first token, in order.
    pub(super) waiting: Vec<usize>,
    /// Requests with a response in progress.
    pub(super) cut: Vec<usize>,
}
