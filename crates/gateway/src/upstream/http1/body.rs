//! The body of a response, read from its connection.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::SizeHint;

use super::connection::Connection;
use super::framing::Framing;
use super::pool::{ConnectionPool, PooledResponse};
use crate::lane::Lane;
use crate::upstream::error::UpstreamError;
use crate::upstream::io::Io;

/// Read to its end, it gives the connection back to the pool; dropped before, it closes
/// it, and the worker sees the disconnect at once.
#[derive(Debug)]
pub(in crate::upstream) struct Body {
    pool: Arc<ConnectionPool>,
    lane: Lane,
    connection: Option<Box<Connection>>,
    framing: Framing,
    keep_alive: bool,
}

impl Body {
    /// The body that follows the head of an response.
    pub(in crate::upstream) fn new(
        pool: &Arc<ConnectionPool>,
        lane: Lane,
        response: PooledResponse,
    ) -> Self {
        let mut body = Self {
            pool: Arc::clone(pool),
            lane,
            connection: Some(response.connection),
            framing: response.head.framing,
            keep_alive: response.head.keep_alive,
        };
        if body.is_end() {
            body.finish();
        }
        body
    }

    /// Whether nothing is left of it.
    pub(in crate::upstream) fn is_end(&self) -> bool {
        self.framing == Framing::Done
    }

    /// Bytes left, where the head said how many.
    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Done => SizeHint::with_exact(0),
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }

    /// The next piece.
    pub(in crate::upstream) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(None);
        };
        let piece = ready!(connection.poll_piece(cx, &mut self.framing));
        match &piece {
            Some(Err(_)) => self.connection = None,
            _ if self.is_end() => self.finish(),
            _ => {}
        }
        Poll::Ready(piece)
    }

    /// The stream that the worker has switched to another protocol, with the bytes of it that
    /// came already; `None` at the end of a body.
    pub(in crate::upstream) fn into_stream(self) -> Option<(Bytes, Io)> {
        self.connection.map(|connection| connection.into_stream())
    }

    fn finish(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.keep_alive
        {
            self.pool.keep(self.lane, connection);
        }
    }
}
