//! Credentials that are read at start, and the tasks that keep them as they are now.

use std::sync::Arc;
use std::thread;

use tokio::runtime::Runtime;

use super::error::StartError;
use crate::auth::{Audit, AuditLog, AuditWriter, Authenticator, ClientKeys, Issuer};
use crate::config::{AuditTo, AuthSection, Options};
use crate::server::Auth;
use crate::telemetry::Metrics;
use crate::upstream::ControlClient;

/// What runs as long as the gateway does.
#[derive(Debug)]
pub(super) struct Access {
    client_keys: Option<Arc<ClientKeys>>,
    issuer: Option<Arc<Issuer>>,
    pub(super) audit_writer: Option<AuditWriter>,
}

/// Reads what the options name.
///
/// # Errors
/// The first part that cannot be set up: nothing falls back to fewer checks.
pub(super) fn build(
    options: &Options,
    metrics: &Arc<Metrics>,
    client: &ControlClient,
    runtime: &Runtime,
) -> Result<(Auth, Access), StartError> {
    let section = AuthSection::from(options);
    let client_keys = section.client_keys.as_deref();
    let client_keys = client_keys.map(|path| ClientKeys::open(path, metrics));
    let client_keys = client_keys
        .transpose()
        .map_err(|error| StartError::environment("use the api_keys_file", error))?;
    let issuer = issuer(&section, client, runtime)?;
    let (audit, audit_writer) = audit(options)?;
    let auth = Auth {
        authenticator: Authenticator::new(&section, client_keys.clone(), issuer.clone()),
        audit,
    };
    let access = Access {
        client_keys,
        issuer,
        audit_writer,
    };
    Ok((auth, access))
}

/// The issuer of tokens, whose keys are fetched.
fn issuer(
    section: &AuthSection,
    client: &ControlClient,
    runtime: &Runtime,
) -> Result<Option<Arc<Issuer>>, StartError> {
    let control_plane = section.control_plane.as_ref();
    let Some(options) = control_plane.and_then(|options| options.jwt.as_ref()) else {
        return Ok(None);
    };
    let connect = || runtime.block_on(Issuer::connect(options, client.clone()));
    // The caller's thread may be one that must not wait for a future.
    let connected = thread::scope(|scope| scope.spawn(connect).join());
    let connected =
        connected.map_err(|_| StartError::environment("use the jwt_issuer", "a thread ended"))?;
    let issuer = connected.map_err(|error| StartError::environment("use the jwt_issuer", error))?;
    Ok(Some(issuer))
}

/// What records calls of the control plane, and the thread that writes, if they are recorded.
fn audit(options: &Options) -> Result<(Audit, Option<AuditWriter>), StartError> {
    let Some(to) = AuditTo::new(options) else {
        return Ok((Audit::default(), None));
    };
    let (log, writer) = AuditLog::start(&to)
        .map_err(|error| StartError::environment("write the audit_log", error))?;
    Ok((Audit::new(Some(log)), Some(writer)))
}

impl Access {
    /// Keeps credentials as they are now, by tasks of this runtime.
    pub(super) fn watch(&self) {
        if let Some(keys) = &self.client_keys {
            tokio::spawn(Arc::clone(keys).watch());
        }
        if let Some(issuer) = &self.issuer {
            tokio::spawn(Arc::clone(issuer).watch());
        }
    }
}
