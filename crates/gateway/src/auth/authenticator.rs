//! Which credentials open which plane.

use std::sync::Arc;

use http::header::HeaderMap;
use subtle::ConstantTimeEq;

use super::access::Access;
use super::client_keys::ClientKeys;
use super::control_plane::ControlPlane;
use super::credentials::{bearer, own_header};
use super::issuer::Issuer;
use super::principal::Principal;
use crate::config::{AuthSection, Secret};
use crate::endpoint::Vendor;
use crate::error::Error;

/// Checks the key that a request shows, in time that does not depend on the key:
/// `Authorization: Bearer <key>` (RFC 6750), or `x-api-key: <key>` at Anthropic's endpoints.
#[derive(Debug)]
pub(crate) struct Authenticator {
    key: Option<Secret>,
    client_keys: Option<Arc<ClientKeys>>,
    control_plane: Option<ControlPlane>,
}

/// What a request shows, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credentials<'a> {
    pub(crate) access: Access,
    pub(crate) vendor: Vendor,
    pub(crate) headers: &'a HeaderMap,
}

impl Authenticator {
    pub(crate) fn new(
        options: &AuthSection,
        client_keys: Option<Arc<ClientKeys>>,
        issuer: Option<Arc<Issuer>>,
    ) -> Self {
        let control_plane = options.control_plane.as_ref();
        Self {
            client_keys,
            key: options.api_key.clone(),
            control_plane: control_plane.map(|options| ControlPlane::new(options, issuer)),
        }
    }

    /// Where a request comes from; where its route needs no key, or there is none, every request
    /// may come.
    ///
    /// # Errors
    /// No key, or none that opens the route.
    pub(crate) fn authenticate(&self, request: Credentials<'_>) -> Result<Principal, Error> {
        match request.access {
            Access::Probe => Ok(Principal::Anonymous),
            // What is shown depends on a client's key; none is needed.
            Access::Info => Ok(self.client(request).unwrap_or(Principal::Anonymous)),
            Access::Inference | Access::Control | Access::Engine => self.check_key(request),
        }
    }

    /// Where a request that has been refused comes from, if it shows a key that opens anything.
    pub(crate) fn identify(&self, request: Credentials<'_>) -> Option<Principal> {
        let (bearer, own) = (
            bearer(request.headers),
            own_header(request.vendor, request.headers),
        );
        let is_key = |shown: &[u8]| self.is_key(shown);
        if bearer.is_some_and(is_key) || own.is_some_and(is_key) {
            return Some(Principal::ApiKey);
        }
        let control = self.control_plane.as_ref();
        let operator = control.and_then(|control| control.identify(bearer?));
        operator.or_else(|| self.client(request))
    }

    /// The client whose key a request shows; it is not counted.
    fn client(&self, request: Credentials<'_>) -> Option<Principal> {
        let keys = self.client_keys.as_ref()?;
        let shown = [
            bearer(request.headers),
            own_header(request.vendor, request.headers),
        ];
        let mut found = shown.into_iter().flatten();
        let found = found.find_map(|shown| keys.identify(shown))?;
        Some(Principal::Client(found))
    }

    /// Whether this is the gateway's key.
    fn is_key(&self, shown: &[u8]) -> bool {
        let key = self.key.as_ref();
        key.is_some_and(|key| shown.ct_eq(key.expose().as_bytes()).into())
    }

    /// The same for the control plane: where it has credentials of its own, they open nothing
    /// else, and nothing else opens it.
    ///
    /// # Errors
    /// No credential, or none that opens the control plane.
    pub(crate) async fn authenticate_control(
        &self,
        request: Credentials<'_>,
    ) -> Result<Principal, Error> {
        match &self.control_plane {
            Some(control) => control.authenticate(bearer(request.headers)).await,
            None => self.authenticate(request),
        }
    }

    fn check_key(&self, request: Credentials<'_>) -> Result<Principal, Error> {
        let (vendor, headers) = (request.vendor, request.headers);
        if self.key.is_none() && self.client_keys.is_none() {
            return Ok(Principal::Anonymous);
        }
        let (bearer, own) = (bearer(headers), own_header(vendor, headers));
        let is_key = |shown: &[u8]| self.is_key(shown);
        if bearer.is_some_and(is_key) || own.is_some_and(is_key) {
            return Ok(Principal::ApiKey);
        }
        // Keys of clients never open the control plane.
        if let Some(keys) = &self.client_keys
            && request.access == Access::Inference
        {
            let found = bearer.and_then(|shown| keys.find(shown));
            let found = found.or_else(|| own.and_then(|shown| keys.find(shown)));
            if let Some(found) = found {
                return Ok(Principal::Client(found));
            }
        }
        Err(Error::Unauthorized { vendor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorize(access: Access, vendor: Vendor, shown: &[(&'static str, &str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in shown {
            headers.append(*name, value.parse().unwrap());
        }
        let key = Authenticator::new(
            &AuthSection {
                api_key: Some("s3cret".to_owned().into()),
                client_keys: None,
                control_plane: None,
            },
            None,
            None,
        );
        let request = Credentials {
            access,
            vendor,
            headers: &headers,
        };
        let principal = key.authenticate(request).ok()?;
        Some(principal.as_str().to_owned())
    }

    #[test]
    fn only_the_right_bearer_key_opens() {
        for access in [Access::Inference, Access::Control] {
            for right in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret"] {
                let right = authorize(access, Vendor::OpenAi, &[("authorization", right)]);
                assert_eq!(right, Some("api_key".to_owned()));
            }
            for wrong in [
                "Bearer s3cre",
                "Bearer s3cret2",
                "Bearers3cret",
                "s3cret",
                "Basic s3cret",
                "Bearer ",
                "Bearer",
            ] {
                let wrong_key = authorize(access, Vendor::OpenAi, &[("authorization", wrong)]);
                assert_eq!(wrong_key, None, "{wrong}");
            }
            assert_eq!(authorize(access, Vendor::OpenAi, &[]), None);
        }
    }

    #[test]
    fn x_api_key_opens_where_anthropics_api_is_spoken() {
        let (right, wrong) = (("x-api-key", "s3cret"), ("x-api-key", "other"));
        let bearer = ("authorization", "Bearer s3cret");
        let authorize = |vendor, shown: &[_]| authorize(Access::Inference, vendor, shown);
        assert_eq!(
            authorize(Vendor::Anthropic, &[right]),
            Some("api_key".to_owned())
        );
        assert_eq!(
            authorize(Vendor::Anthropic, &[bearer]),
            Some("api_key".to_owned())
        );
        assert_eq!(authorize(Vendor::Anthropic, &[wrong]), None);
        assert_eq!(authorize(Vendor::OpenAi, &[right]), None);
    }

    #[test]
    fn probes_and_information_need_no_key() {
        for access in [Access::Probe, Access::Info] {
            let right = authorize(access, Vendor::OpenAi, &[]);
            assert_eq!(right, Some("anonymous".to_owned()));
        }
    }

    #[test]
    fn without_a_key_every_request_may_come_in() {
        let open = Authenticator::new(
            &AuthSection {
                api_key: None,
                client_keys: None,
                control_plane: None,
            },
            None,
            None,
        );
        let right = open.authenticate(Credentials {
            access: Access::Control,
            vendor: Vendor::OpenAi,
            headers: &HeaderMap::new(),
        });
        assert!(matches!(right, Ok(Principal::Anonymous)));
    }
}
