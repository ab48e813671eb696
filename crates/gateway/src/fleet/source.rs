//! Where workers come from.

/// Where a list of workers comes from. Each source adds and removes its own workers only. Where
/// several name the same URL, the smallest has the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    precedence: u8,
    name: &'static str,
}

impl Source {
    /// The options: workers that are there from the start.
    pub(crate) const CONFIGURED: Self = Self::new(0, "configured");
    /// `POST /workers` and its older forms.
    pub(crate) const API: Self = Self::new(1, "manual");

    const fn new(precedence: u8, name: &'static str) -> Self {
        Self { precedence, name }
    }

    /// A source whose workers come and go by themselves.
    pub(crate) const fn discovery(name: &'static str) -> Self {
        Self::new(2, name)
    }

    /// Its name in `GET /workers` and in the `source` label of metrics.
    pub(crate) fn name(self) -> &'static str {
        self.name
    }
}
