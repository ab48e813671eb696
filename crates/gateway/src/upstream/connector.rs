//! Connections to one place that is no worker, for the clients of libraries.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tower::Service;

use super::address::Host;
use super::error::UpstreamError;
use super::io::Io;
use super::limits::ConnectionLimits;
use super::tls::Offer;
use crate::config::WorkerUrl;

/// Which protocol is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
}

/// Connects to one place, whatever it is asked for. A clone shares what is known of its name.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    url: Arc<WorkerUrl>,
    host: Arc<Host>,
    limits: ConnectionLimits,
    offer: Offer,
}

impl Connector {
    pub(crate) fn new(url: WorkerUrl, limits: ConnectionLimits, spoken: Spoken) -> Self {
        Self {
            host: limits.resolver.host(url.host()),
            url: Arc::new(url),
            limits,
            offer: match spoken {
                Spoken::Http1 => Offer::Http1,
                Spoken::Http2 => Offer::Http2,
            },
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Io>;
    type Error = UpstreamError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let (url, host) = (&connector.url, &connector.host);
            let (io, _) = connector.limits.open(url, host, connector.offer).await?;
            Ok(TokioIo::new(io))
        })
    }
}
