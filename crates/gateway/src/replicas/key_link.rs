//! The way to the server that has the assignments of routing keys.

use std::future::Future;

use routing::sticky::{Assignment, Claim, SharedKey};

use super::link::LinkError;

/// A key of one of the pools of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolKey {
    /// What all gateways call the pool.
    pub(crate) pool: u64,
    pub(crate) key: SharedKey,
}

/// A part of what the server has.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) keys: Vec<PoolKey>,
    /// Where the next part begins; `None` after the last one.
    pub(crate) next: Option<u64>,
}

/// Makes links.
pub(crate) trait KeyServer: Send + Sync + 'static {
    type Link: KeyLink;

    /// A link that receives news from now on; in bounded time.
    fn connect(&self) -> impl Future<Output = Result<Self::Link, LinkError>> + Send;
}

/// A way to the server. All but [`next`](Self::next) take bounded time.
pub(crate) trait KeyLink: Send {
    /// Claims keys of a pool; returns what the server has afterwards, in the same order.
    fn claim(
        &mut self,
        pool: u64,
        claims: &[Claim],
    ) -> impl Future<Output = Result<Vec<Assignment>, LinkError>> + Send;

    /// What the server has, from here on.
    fn page(&mut self, from: u64) -> impl Future<Output = Result<Page, LinkError>> + Send;

    /// Sends news without contents, which come back as others do.
    fn echo(&mut self) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// What gateways have claimed, this one included; `None` when the link is lost.
    fn next(&mut self) -> impl Future<Output = Option<Vec<PoolKey>>> + Send;
}
