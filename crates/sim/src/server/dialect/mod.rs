//! The APIs: each parses its requests and writes its responses.

mod base64;
pub(crate) mod chat;
pub(crate) mod completion;
#[expect(clippy::module_inception, reason = "the noun of the module")]
pub(crate) mod dialect;
pub(crate) mod encode;
mod events;
pub(crate) mod generate;
mod generate_logprobs;
pub(crate) mod messages;
pub(crate) mod ollama;
mod openai;
pub(crate) mod responses;
pub(crate) mod timestamp;
pub(crate) mod transcription;
pub(crate) mod vertex;
