//! What several gateways in front of the same workers share: placements and loads.
//!
//! Pure: messages are bytes, and the caller carries them. A gateway notes its placements in a
//! [`Journal`], makes messages of them and of its requests in flight with an [`Outbox`], and takes
//! over those of others with [`Peers`]. Messages may be lost, late, or come twice.

mod journal;
mod message;
mod outbox;
mod peers;
#[cfg(test)]
mod tests;

pub use journal::{Journal, Sight};
pub use message::{Header, Kind, MAX_BLOCKS_SENT, Malformed, Message, Placement, WorkerLoad};
pub use outbox::{Clocks, Identity, Last, Limits, Outbox, OutboxTotals, Part};
pub use peers::{Peer, PeerTotals, Peers, Update};
