//! HTTP/2 towards a worker that offers it: few connections per lane, many requests on each.
//!
//! A connection has one task, on its lane. What an unread response may pile up is bounded by the
//! windows; they are large because token streams are many small frames.

mod body;
mod connection;
mod pool;

pub(super) use body::Body;
pub(super) use pool::Http2Pool;
