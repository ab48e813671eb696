//! The engine model: what an inference server does with its time, and nothing else.
//!
//! No sockets, no tasks, no clock: `now` is a parameter (time since the engine's start, never
//! going back), so the same code serves HTTP in real time and a fleet simulator in virtual time.
//!
//! The model: one prefill at a time in order of arrival, at a fixed speed over the tokens that
//! are not in the prefix cache; next to it a continuous decode batch whose step takes
//! `base + batch * per_seq`; at most `max_running_requests` in both. What it leaves out: chunked
//! prefill, prefill pausing decode, KV memory of running jobs (they pin no cache pages and are
//! never retracted), and reuse of generated tokens (only prompts enter the cache).

mod decode;
#[expect(clippy::module_inception, reason = "the noun of the module")]
mod engine;
mod job;
mod prefix_cache;
mod prompt;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use job::{EngineLoad, EngineOptions, Event, EventKind, Job, JobId, QueueFull};
pub use prefix_cache::PrefixCache;
pub(crate) use prompt::mix;
pub use prompt::{BYTES_PER_TOKEN, Prompt};
