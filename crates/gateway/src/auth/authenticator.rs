//! The gateway's own key.

use http::header::{self, HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use super::access::{Access, Principal};
use crate::config::Secret;
use crate::error::Error;

/// Checks `Authorization: Bearer <key>` (RFC 6750), in time that does not depend on the key.
#[derive(Debug)]
pub(crate) struct Authenticator {
    key: Option<Secret>,
}

impl Authenticator {
    pub(crate) fn new(key: Option<Secret>) -> Self {
        Self { key }
    }

    /// With which right a request may use a route; without a key, every request may.
    pub(crate) fn authorize(
        &self,
        access: Access,
        headers: &HeaderMap,
    ) -> Result<Principal, Error> {
        let key = self.key.as_ref().filter(|_| access.needs_key());
        let Some(key) = key else {
            return Ok(Principal::Anonymous);
        };
        let shown = headers
            .get(header::AUTHORIZATION)
            .map(HeaderValue::as_bytes);
        let shown = shown.and_then(|value| value.strip_prefix(b"Bearer "));
        let matches = shown.is_some_and(|shown| shown.ct_eq(key.expose().as_bytes()).into());
        if matches {
            Ok(Principal::ApiKey)
        } else {
            Err(Error::Unauthorized)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorize(access: Access, shown: Option<&str>) -> Option<Principal> {
        let mut headers = HeaderMap::new();
        if let Some(shown) = shown {
            headers.insert(header::AUTHORIZATION, shown.parse().unwrap());
        }
        let key = Authenticator::new(Some("s3cret".to_owned().into()));
        key.authorize(access, &headers).ok()
    }

    #[test]
    fn only_the_right_bearer_key_opens() {
        for access in [Access::Inference, Access::Control] {
            let right = authorize(access, Some("Bearer s3cret"));
            assert_eq!(right, Some(Principal::ApiKey));
            for wrong in [
                "Bearer s3cre",
                "Bearer s3cret2",
                "bearer s3cret",
                "s3cret",
                "Basic s3cret",
                "Bearer ",
            ] {
                assert_eq!(authorize(access, Some(wrong)), None, "{wrong}");
            }
            assert_eq!(authorize(access, None), None);
        }
    }

    #[test]
    fn probes_and_information_need_no_key() {
        for access in [Access::Probe, Access::Info] {
            assert_eq!(authorize(access, None), Some(Principal::Anonymous));
        }
    }

    #[test]
    fn without_a_key_every_request_may_come_in() {
        let right = Authenticator::new(None).authorize(Access::Control, &HeaderMap::new());
        assert_eq!(right.ok(), Some(Principal::Anonymous));
    }
}
