//! Credentials that are read at start, and the tasks that keep them as they are now.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use routing::quota::SharedLimits;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, spawn_blocking};

use super::error::StartError;
use crate::api::Cors;
use crate::auth::{Audit, AuditLog, AuditWriter, Authenticator, ClientKeys, Issuer};
use crate::config::{AuditTo, AuthSection, JwtConfig, Options, ServerSection};
use crate::server::ServiceRules;
use crate::telemetry::Metrics;
use crate::upstream::ControlClient;

/// What credentials are checked against, kept as it is now until dropped.
#[derive(Debug)]
pub(super) struct Access {
    section: AuthSection,
    client_keys: Option<Arc<ClientKeys>>,
    issuer: Option<Arc<Issuer>>,
    /// Where other gateways share the limits of keys.
    shared: Option<Arc<SharedLimits>>,
    watches: Mutex<Vec<JoinHandle<()>>>,
}

/// Reads what the options name.
///
/// # Errors
/// The first part that cannot be set up: nothing falls back to fewer checks.
pub(super) fn build(
    options: &Options,
    shared: Option<Arc<SharedLimits>>,
    metrics: &Arc<Metrics>,
    client: &ControlClient,
    runtime: &Runtime,
) -> Result<Access, StartError> {
    let nothing = Access {
        section: AuthSection::from(&Options::default()),
        client_keys: None,
        issuer: None,
        shared,
        watches: Mutex::default(),
    };
    let read = || runtime.block_on(nothing.with(options, metrics, client));
    // The caller's thread may be one that must not wait for a future.
    let access = thread::scope(|scope| scope.spawn(read).join());
    access.map_err(|_| StartError::environment("read credentials", "a thread ended"))?
}

/// What records calls of the control plane, and the thread that writes, if they are recorded.
pub(super) fn audit(options: &Options) -> Result<(Audit, Option<AuditWriter>), StartError> {
    let Some(to) = AuditTo::new(options) else {
        return Ok((Audit::default(), None));
    };
    let (log, writer) = AuditLog::start(&to)
        .map_err(|error| StartError::environment("write the audit_log", error))?;
    Ok((Audit::new(Some(log)), Some(writer)))
}

impl Access {
    /// The credentials of other options; what is known of the same ones is kept.
    ///
    /// # Errors
    /// The first part that cannot be set up.
    pub(super) async fn with(
        &self,
        options: &Options,
        metrics: &Arc<Metrics>,
        client: &ControlClient,
    ) -> Result<Self, StartError> {
        let section = AuthSection::from(options);
        let known = Some(self).filter(|before| before.section.client_keys == section.client_keys);
        let client_keys = match (known, section.client_keys.clone()) {
            (Some(before), _) => before.client_keys.clone(),
            (None, None) => None,
            (None, Some(path)) => {
                let (metrics, shared) = (Arc::clone(metrics), self.shared.clone());
                let opened =
                    spawn_blocking(move || ClientKeys::open(&path, &metrics, shared)).await;
                let what = "use the api_keys_file";
                let opened = opened.map_err(|error| StartError::environment(what, error))?;
                Some(opened.map_err(|error| StartError::environment(what, error))?)
            }
        };
        let known = Some(self).filter(|before| jwt(&before.section) == jwt(&section));
        let issuer = match (known, jwt(&section)) {
            (Some(before), _) => before.issuer.clone(),
            (None, None) => None,
            (None, Some(options)) => {
                let issuer = Issuer::connect(options, client.clone()).await;
                Some(issuer.map_err(|error| StartError::environment("use the jwt_issuer", error))?)
            }
        };
        Ok(Self {
            section,
            client_keys,
            issuer,
            shared: self.shared.clone(),
            watches: Mutex::default(),
        })
    }

    /// How requests are judged by these options.
    pub(super) fn rules(&self, options: &Options) -> ServiceRules {
        let (client_keys, issuer) = (self.client_keys.clone(), self.issuer.clone());
        let origins = ServerSection::from(options).cors_allowed_origins;
        ServiceRules {
            authenticator: Authenticator::new(&self.section, client_keys, issuer),
            cors: Cors::new(&origins),
        }
    }

    /// Is replaced: what is not needed any more is counted no longer.
    pub(super) fn retire(&self, successor: &Self) {
        let new = successor.client_keys.as_ref();
        let old = self.client_keys.iter();
        for keys in old.filter(|old| !new.is_some_and(|new| Arc::ptr_eq(old, new))) {
            keys.retire(new.map(Arc::as_ref));
        }
    }

    /// Keeps credentials as they are now, by tasks of this runtime.
    pub(super) fn watch(&self) {
        let keys = self.client_keys.iter();
        let keys = keys.map(|keys| tokio::spawn(Arc::clone(keys).watch()));
        let issuer = self.issuer.iter();
        let issuer = issuer.map(|issuer| tokio::spawn(Arc::clone(issuer).watch()));
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.extend(keys.chain(issuer));
    }
}

fn jwt(section: &AuthSection) -> Option<&JwtConfig> {
    section.control_plane.as_ref()?.jwt.as_ref()
}

impl Drop for Access {
    fn drop(&mut self) {
        let watches = self.watches.get_mut();
        for watch in watches.unwrap_or_else(PoisonError::into_inner) {
            watch.abort();
        }
    }
}
