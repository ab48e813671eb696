//! The way to the server that keeps limits for several gateways.

use std::future::Future;
use std::sync::Arc;

use routing::quota::{Ask, Grant, QueueAnswer, QueueAsk, RateLimit, SlotAsk, SlotGrant};

use super::link::LinkError;

/// What a gateway asks of several limits at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Round {
    pub(crate) gateway: u64,
    /// The gateway stops.
    pub(crate) leaves: bool,
    pub(crate) asks: Vec<(Arc<str>, (RateLimit, Ask))>,
    /// Gateways, as far as this one knows.
    pub(crate) known: u64,
    pub(crate) slots: Vec<(Arc<str>, SlotAsk)>,
    pub(crate) queues: Vec<(Arc<str>, QueueAsk)>,
}

impl Round {
    /// Whether nothing is asked.
    pub(crate) fn is_empty(&self) -> bool {
        self.asks.is_empty() && self.slots.is_empty() && self.queues.is_empty()
    }
}

/// What it gets, in the same order.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    /// Gateways that have asked for anything lately, this one included.
    pub(crate) gateways: u64,
    pub(crate) grants: Vec<Grant>,
    pub(crate) slots: Vec<SlotGrant>,
    pub(crate) queues: Vec<QueueAnswer>,
}

/// Makes links.
pub(crate) trait QuotaServer: Send + Sync + 'static {
    type Link: QuotaLink;

    /// A link, in bounded time.
    fn connect(&self) -> impl Future<Output = Result<Self::Link, LinkError>> + Send;
}

/// A way to the server.
pub(crate) trait QuotaLink: Send {
    /// Asks, and waits for the answer, in bounded time.
    fn exchange(
        &mut self,
        round: &Round,
    ) -> impl Future<Output = Result<Granted, LinkError>> + Send;
}
