//! Which of the gateway's threads carries a request.

/// A lane's number. A lane is a thread with an event loop of its own (thread per core).
///
/// A request, its client's connection and the worker connections it uses stay on one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lane(pub(crate) usize);

impl Lane {
    /// What belongs to this lane in a list that has an item for each.
    pub(crate) fn of<T>(self, items: &[T]) -> Option<&T> {
        items.get(self.0)
    }
}
