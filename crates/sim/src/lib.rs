//! A simulated SGLang worker: a model of its timing behind its real HTTP protocol.
//!
//! [`engine`] is the model (queue, prefill, prefix cache, batched decode) without sockets or a
//! clock. [`SimWorker`] serves it over HTTP as SGLang's server does, and can inject [`Faults`].
//! Tests, demos and benchmarks of the gateway use it. [`fleet`] replays a trace over many workers
//! in virtual time, to compare policies.
//!
//! These parts are invented: the tokenizer (4 bytes of text are one token), the text (one
//! three-letter word per token, determined by the prompt's hash, so equal prompts get equal text),
//! log probabilities, embeddings and scores.

pub mod engine;
mod error;
mod faults;
pub mod fleet;
mod options;
mod server;

pub use error::SimError;
pub use faults::Faults;
pub use options::{Role, SimOptions};
pub use server::{Outcome, Recorded, SimStats, SimWorker};
