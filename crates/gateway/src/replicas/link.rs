//! The way to other gateways, as the exchange needs it.

use std::future::Future;

use thiserror::Error;

/// Why there is no way, or none any more.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub(crate) struct LinkError(pub(crate) String);

/// Makes links.
pub(crate) trait Connector: Send + Sync + 'static {
    type Link: Link;

    /// A link that receives what is sent to these channels; in bounded time.
    fn connect(
        &self,
        channels: [String; 2],
    ) -> impl Future<Output = Result<Self::Link, LinkError>> + Send;

    /// What distinguishes the fleets that use the same server.
    fn group(&self) -> String;
}

/// A way to other gateways. Messages may get lost.
pub(crate) trait Link: Send {
    /// Sends a message to those that listen to a channel; in bounded time.
    fn publish(
        &mut self,
        channel: &str,
        message: Vec<u8>,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// The next message; `None` when the link is lost.
    fn next(&mut self) -> impl Future<Output = Option<Vec<u8>>> + Send;
}
