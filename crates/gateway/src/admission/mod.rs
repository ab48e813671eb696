//! How many requests are in progress, how fast they come, and which wait.

mod arrival_line;
mod asker;
mod cap;
mod fair_line;
mod limiter;
mod queue_bound;
mod queue_error;
mod rate;
#[cfg(test)]
mod tests;
mod waiters;
mod worker_queue;

pub(crate) use asker::{Asker, PRIORITY};
pub(crate) use limiter::{Admission, Permit};
pub(crate) use queue_error::QueueError;
pub(crate) use worker_queue::{QueueLimits, WaitFor, WorkerQueue};
