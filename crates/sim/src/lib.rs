//! A simulated SGLang worker: an honest model of its time behind its real HTTP protocol.
//!
//! [`engine`] is the model (queue, prefill, prefix cache, batched decode) without sockets or a
//! clock. [`SimWorker`] serves it over HTTP the way SGLang's server does, with [`Faults`] to
//! switch on. Tests, demos and benchmarks of the gateway lean on it. [`fleet`] replays a trace
//! over many workers in virtual time, to compare policies.
//!
//! What is made up: the tokenizer (4 bytes of text are one token), the text (three-letter words
//! drawn from the prompt's hash, one per token, so equal prompts get equal answers), log
//! probabilities, embeddings and scores.

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
