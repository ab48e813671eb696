//! HTTP/1.1 towards a worker, on one connection and in the request's own task.
//!
//! No task and no channel stands between the worker's socket and the client's, and no buffer
//! but the one of a read (16 KiB): the response is read only when the client's side asks for more (backpressure), and dropping
//! it closes the socket (the worker sees the disconnect at once). Framing: RFC 9112.

mod body;
mod connection;
mod framing;
mod head;
mod pool;
#[cfg(any(test, fuzzing))]
mod properties;

pub(super) use body::Body;
pub(super) use pool::ConnectionPool;
#[cfg(any(test, fuzzing))]
pub use properties::response;
