//! The engine model: the timing of an inference server, without I/O.
//!
//! It has no sockets, tasks or clock. `now` is a parameter: the time since the engine's start, never
//! decreasing. The same code runs behind HTTP in real time and in a fleet in virtual time.
//!
//! There are two models. The plain one has two stages: one prefill at a time in order of arrival,
//! at a fixed speed over the tokens that are not in the prefix cache, and beside it a continuous
//! decode batch whose step takes `base + batch * per_seq`. Both hold at most
//! `max_running_requests` together. It omits chunked prefill, prefill that pauses decode, KV memory
//! of running requests (they pin no cache pages and are never retracted), and reuse of generated
//! tokens (only prompts enter the cache).
//!
//! The `shared` model is one device with one memory, run by `SGLang`'s rules. Passes over prompts,
//! of up to `chunk_tokens`, go first; the batch decodes between them, or with them by option. A
//! step's time grows with the batch and with the tokens in its contexts. Running sequences and
//! cached prefixes share the memory: unused prefixes are evicted, a request waits until there is
//! room for it and for what running ones will probably generate, and if that was too little, the
//! youngest sequences go back to the queue and are computed again. Evicted prefixes may be loaded
//! back from the host's memory. It omits reuse of generated tokens (they stay in memory until they
//! are evicted, but no prompt begins with them), and takes a chunked prompt's memory at once.

mod decode;
#[expect(clippy::module_inception, reason = "the noun of the module")]
mod engine;
mod prefix_cache;
mod prompt;
mod request;
mod shared;
mod split;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use prefix_cache::PrefixCache;
pub(crate) use prompt::mix;
pub use prompt::{BYTES_PER_TOKEN, Prompt};
pub(crate) use request::PromptSource;
pub use request::{EngineLoad, EngineOptions, Event, EventKind, QueueFull, RequestId, SimRequest};
pub use shared::{EngineModel, SharedOptions};
