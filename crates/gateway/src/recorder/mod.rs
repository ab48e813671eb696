//! Own traffic recorded: a line per inference request, without its text.
//!
//! Lanes leave a [`Record`] of each request and go on. A thread of its own takes them, decides which
//! sessions are recorded, hashes what could be looked up once more, and writes.

mod file;
mod line;
mod record;
mod salt;
mod sampler;
mod shards;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use record::{Record, RecordedPrompt, hash_name};
pub(crate) use shards::Recorder;
pub(crate) use writer::{RecordCounters, start};
