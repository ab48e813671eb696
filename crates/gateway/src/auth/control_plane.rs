//! The credentials of the control plane, and what each of them may do.

use std::sync::Arc;

use super::digest::KeyDigest;
use super::issuer::Issuer;
use super::principal::{AuthMethod, Operator, Principal};
use crate::config::ControlPlaneAuth;
use crate::error::Error;

/// Which requests may use the control plane, where it has credentials of its own: the gateway's
/// key is then none of them.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    keys: Vec<(KeyDigest, Arc<Operator>)>,
    issuer: Option<Arc<Issuer>>,
}

impl ControlPlane {
    pub(super) fn new(options: &ControlPlaneAuth, issuer: Option<Arc<Issuer>>) -> Self {
        let keys = options.api_keys.iter().map(|entry| {
            let operator = Operator {
                id: entry.id.clone(),
                name: entry.name.clone(),
                role: entry.role,
                method: AuthMethod::ApiKey,
            };
            let digest = KeyDigest::of(entry.key.expose().as_bytes());
            (digest, Arc::new(operator))
        });
        Self {
            keys: keys.collect(),
            issuer,
        }
    }

    /// The user that a key or a token is of. Fetches the issuer's keys when a token has one that
    /// is not known.
    ///
    /// # Errors
    /// [`Error::ControlPlaneUnauthorized`].
    pub(super) async fn authenticate(&self, shown: Option<&[u8]>) -> Result<Principal, Error> {
        let shown = shown.ok_or(Error::ControlPlaneUnauthorized(
            "missing credentials; expected 'Authorization: Bearer <key>'",
        ))?;
        if let Some(operator) = self.key(shown) {
            return Ok(Principal::Operator(Arc::clone(operator)));
        }
        let is_token = shown.split(|byte| *byte == b'.').count() == 3;
        let Some(issuer) = self.issuer.as_ref().filter(|_| is_token) else {
            let why = "not a credential of the control plane";
            return Err(Error::ControlPlaneUnauthorized(why));
        };
        let operator = issuer.verify(shown).await;
        let operator = operator.map_err(Error::ControlPlaneUnauthorized)?;
        Ok(Principal::Operator(Arc::new(operator)))
    }

    /// The user whose key this is.
    pub(super) fn identify(&self, shown: &[u8]) -> Option<Principal> {
        let operator = self.key(shown)?;
        Some(Principal::Operator(Arc::clone(operator)))
    }

    /// The user of a key; all keys are compared, whichever it is.
    fn key(&self, shown: &[u8]) -> Option<&Arc<Operator>> {
        let shown = KeyDigest::of(shown);
        let compare = |found, (digest, operator)| {
            let digest: &KeyDigest = digest;
            if digest.matches(&shown) {
                Some(operator)
            } else {
                found
            }
        };
        let pairs = self
            .keys
            .iter()
            .map(|(digest, operator)| (digest, operator));
        pairs.fold(None, compare)
    }
}
