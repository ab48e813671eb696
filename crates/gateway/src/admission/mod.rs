//! How many requests are in progress, how fast they come, and which wait.

mod cap;
mod limiter;
mod rate;
mod waiters;
mod worker_queue;

pub(crate) use limiter::{Admission, Permit};
pub(crate) use worker_queue::{QueueError, QueueLimits, WaitFor, WorkerQueue};
