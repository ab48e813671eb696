//! HTTP/1.1 towards a worker, on one connection and in the request's own task.
//!
//! No task, channel or buffer stands between the worker's socket and the client's: the
//! reply is read only when the client's side asks for more (backpressure), and dropping
//! it closes the socket (the worker sees the disconnect at once). Framing: RFC 9112.

mod connection;
mod framing;
mod head;

pub(crate) use connection::{Connection, UpstreamError};
pub(crate) use framing::Framing;
pub(crate) use head::{RequestHead, ResponseHead, is_hop_by_hop};
