//! Asking for other options while the gateway runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::error::ConfigError;
use super::live::Live;
use super::options::Options;

/// The names of the options that have changed.
pub(crate) type Reloaded = Result<Vec<&'static str>, ReloadError>;

/// Why the options in force stay as they are.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The new options are wrong, or one that differs takes a restart.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What they name cannot be had: a file of keys, an issuer.
    #[error("{0}")]
    Unavailable(String),
    /// There is no file to read.
    #[error("the gateway was started without a configuration file; start it with --config FILE")]
    NoFile,
    /// It is too late.
    #[error("the gateway is stopping")]
    Stopping,
}

/// A reload that is asked for.
pub(crate) struct ReloadRequest {
    /// The new options; `None` means those of the file, as it is now.
    pub(crate) options: Option<Box<Options>>,
    pub(crate) answer: Box<dyn FnOnce(Reloaded) + Send>,
}

/// The way to the reloader, and what it did last.
#[derive(Clone, Debug)]
pub(crate) struct Reloads {
    pub(crate) live: Live,
    requests: mpsc::UnboundedSender<ReloadRequest>,
    last: Arc<Mutex<Option<LastReload>>>,
}

#[derive(Debug)]
struct LastReload {
    at: Instant,
    error: Option<String>,
}

impl Reloads {
    pub(crate) fn new(live: Live) -> (Self, mpsc::UnboundedReceiver<ReloadRequest>) {
        let (requests, received) = mpsc::unbounded_channel();
        let last = Arc::default();
        let reloads = Self {
            live,
            requests,
            last,
        };
        (reloads, received)
    }

    /// Reads the file again, and waits for the end of that.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub(crate) async fn reload_file(&self) -> Reloaded {
        let (answer, answered) = oneshot::channel();
        self.ask(None, move |reloaded| {
            let _ = answer.send(reloaded);
        })?;
        answered.await.unwrap_or(Err(ReloadError::Stopping))
    }

    /// Asks for a reload; `answer` gets the result, unless the gateway stops.
    ///
    /// # Errors
    /// [`ReloadError::NoFile`], [`ReloadError::Stopping`].
    pub(crate) fn ask(
        &self,
        options: Option<Box<Options>>,
        answer: impl FnOnce(Reloaded) + Send + 'static,
    ) -> Result<(), ReloadError> {
        if options.is_none() && self.live.in_force().loaded.path().is_none() {
            return Err(ReloadError::NoFile);
        }
        let answer = Box::new(answer);
        let asked = self.requests.send(ReloadRequest { options, answer });
        asked.map_err(|_| ReloadError::Stopping)
    }

    /// Notes how a reload ended.
    pub(crate) fn ended(&self, reloaded: &Reloaded) {
        *self.last() = Some(LastReload {
            at: Instant::now(),
            error: reloaded.as_ref().err().map(ToString::to_string),
        });
    }

    /// What is in force, for `GET /debug/config`.
    pub(crate) fn to_json(&self) -> Value {
        let in_force = self.live.in_force();
        let loaded = &in_force.loaded;
        let last = self.last();
        let last = last.as_ref().map(|last| {
            json!({
                "result": if last.error.is_none() { "success" } else { "failed" },
                "error": last.error,
                "age_secs": last.at.elapsed().as_secs(),
            })
        });
        json!({
            "file": loaded.path(),
            "last_reload": last,
            "options": loaded.to_json(),
        })
    }

    fn last(&self) -> MutexGuard<'_, Option<LastReload>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
