//! Why a registration fails.

use thiserror::Error;
use uuid::Uuid;

/// Why a worker was not registered, or not changed.
#[derive(Debug, Error)]
pub(crate) enum RegistrationError {
    /// Its description is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Its URL is registered with other properties.
    #[error(
        "Worker {url} already exists with id {id} and other properties; change it by PUT or PATCH /workers/{id}"
    )]
    Exists { url: String, id: Uuid },
    /// It has been removed.
    #[error("Worker {0} not found")]
    Removed(Uuid),
    /// It is being removed.
    #[error("Worker {url} with id {id} is being removed and cannot be changed")]
    Draining { url: String, id: Uuid },
    /// No prober would start for it.
    #[error("the gateway is stopping")]
    Stopping,
}
