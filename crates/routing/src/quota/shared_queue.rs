//! Queues whose length gateways bound together: what waits in one of them.

use std::fmt::Debug;

/// What a gateway does with a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueUse {
    /// Requests that wait here.
    pub waiting: u64,
    /// Requests that were refused, or pushed out, so far because too many waited.
    pub refused: u64,
}

/// What a gateway has of the places of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRoom {
    /// Requests that wait at other gateways, and take places.
    pub elsewhere: u64,
    /// No more may wait here, whatever is left.
    pub most: u64,
}

impl QueueRoom {
    /// All places of a queue are this gateway's own.
    pub const ALL: Self = Self {
        elsewhere: 0,
        most: u64::MAX,
    };

    /// Requests that may wait here, of so many at all gateways together.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        total.saturating_sub(self.elsewhere).min(self.most)
    }
}

/// A queue that several gateways have, each its own requests in it.
pub trait SharedQueue: Debug + Send + Sync {
    /// How many may wait at all gateways together; 0 where none may, or the queue is not used.
    fn total(&self) -> u64;

    /// What is done with it now.
    fn usage(&self) -> QueueUse;

    /// From now on a request may begin to wait while fewer than this leaves wait here. Those that
    /// wait stay.
    fn set_room(&self, room: QueueRoom);

    /// Pushes out the requests that came last, until no more than so many wait. Returns how many.
    fn shrink(&self, most: u64) -> u64;
}
