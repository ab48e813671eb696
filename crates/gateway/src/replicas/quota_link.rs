//! The way to the server that keeps limits for several gateways.

use std::future::Future;
use std::sync::Arc;

use routing::quota::{Ask, Grant, RateLimit, SlotAsk, SlotGrant};

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
}

/// What it gets, in the same order.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    /// Gateways that have asked for anything lately, this one included.
    pub(crate) gateways: u64,
    pub(crate) grants: Vec<Grant>,
    pub(crate) slots: Vec<SlotGrant>,
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
