//! Why a worker's state does not allow something, in `SGLang`'s words.

use thiserror::Error;

/// A request names an adapter or a session that is not there, or that is there already.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum StateError {
    #[error("Failed to load LoRA adapter {0} because it is already loaded")]
    AlreadyLoaded(String),
    #[error("LoRA with name {name} does not exist. Loaded LoRAs: {loaded}")]
    NotLoaded { name: String, loaded: String },
    #[error("Got LoRA adapter that has never been loaded: {name}\nAll loaded adapters: {loaded}.")]
    NeverLoaded { name: String, loaded: String },
    #[error("Invalid request: session id {0} does not exist")]
    NoSession(String),
}
