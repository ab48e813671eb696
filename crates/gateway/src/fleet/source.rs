//! Where workers come from.

/// Where a list of workers comes from. Each source adds and removes its own workers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source(pub(crate) &'static str);

impl Source {
    /// The options: workers that are there from the start.
    pub(crate) const CONFIGURED: Self = Self("configured");
    /// `POST /workers` and its older forms.
    pub(crate) const API: Self = Self("api");

    /// The `source` label of metrics.
    pub(super) fn label(self) -> &'static str {
        if self == Self::API { "manual" } else { self.0 }
    }
}
