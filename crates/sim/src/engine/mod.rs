//! The engine model: the timing of an inference server, without I/O.
//!
//! It has no sockets, tasks or clock. `now` is a parameter: the time since the engine's start, never
//! decreasing. The same code runs behind HTTP in real time and in a fleet in virtual time.
//!
//! The model: one prefill at a time in order of arrival, at a fixed speed over the tokens that
//! are not in the prefix cache. Beside it runs a continuous decode batch whose step takes
//! `base + batch * per_seq`. Both hold at most `max_running_requests` together. The model omits
//! chunked prefill, prefill that pauses decode, KV memory of running requests (they pin no cache
//! pages and are never retracted), and reuse of generated tokens (only prompts enter the cache).

mod decode;
#[expect(clippy::module_inception, reason = "the noun of the module")]
mod engine;
mod prefix_cache;
mod prompt;
mod request;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use prefix_cache::PrefixCache;
pub(crate) use prompt::mix;
pub use prompt::{BYTES_PER_TOKEN, Prompt};
pub use request::{EngineLoad, EngineOptions, Event, EventKind, QueueFull, RequestId, SimRequest};
