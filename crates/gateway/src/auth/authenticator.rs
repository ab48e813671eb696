//! The gateway's own key.

use http::header::{self, HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use super::access::{Access, Principal};
use super::credentials::X_API_KEY;
use crate::config::Secret;
use crate::endpoint::Vendor;
use crate::error::Error;

/// Checks the key that a request shows, in time that does not depend on the key:
/// `Authorization: Bearer <key>` (RFC 6750), or `x-api-key: <key>` at Anthropic's endpoints.
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
        vendor: Vendor,
        headers: &HeaderMap,
    ) -> Result<Principal, Error> {
        let key = self.key.as_ref().filter(|_| access.needs_key());
        let Some(key) = key else {
            return Ok(Principal::Anonymous);
        };
        let key = key.expose().as_bytes();
        let is_key = |shown: &[u8]| bool::from(shown.ct_eq(key));
        let bearer = headers.get(header::AUTHORIZATION).and_then(bearer_token);
        let own_header = headers
            .get(X_API_KEY)
            .filter(|_| vendor == Vendor::Anthropic);
        let own_header = own_header.map(HeaderValue::as_bytes);
        if bearer.is_some_and(is_key) || own_header.is_some_and(is_key) {
            Ok(Principal::ApiKey)
        } else {
            Err(Error::Unauthorized { vendor })
        }
    }
}

/// The token after `Bearer`, whose case does not matter (RFC 9110 §11.1).
fn bearer_token(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
    let token = scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)?;
    Some(token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorize(
        access: Access,
        vendor: Vendor,
        shown: &[(&'static str, &str)],
    ) -> Option<Principal> {
        let mut headers = HeaderMap::new();
        for (name, value) in shown {
            headers.append(*name, value.parse().unwrap());
        }
        let key = Authenticator::new(Some("s3cret".to_owned().into()));
        key.authorize(access, vendor, &headers).ok()
    }

    #[test]
    fn only_the_right_bearer_key_opens() {
        for access in [Access::Inference, Access::Control] {
            for right in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret"] {
                let right = authorize(access, Vendor::OpenAi, &[("authorization", right)]);
                assert_eq!(right, Some(Principal::ApiKey));
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
            Some(Principal::ApiKey)
        );
        assert_eq!(
            authorize(Vendor::Anthropic, &[bearer]),
            Some(Principal::ApiKey)
        );
        assert_eq!(authorize(Vendor::Anthropic, &[wrong]), None);
        assert_eq!(authorize(Vendor::OpenAi, &[right]), None);
    }

    #[test]
    fn probes_and_information_need_no_key() {
        for access in [Access::Probe, Access::Info] {
            let right = authorize(access, Vendor::OpenAi, &[]);
            assert_eq!(right, Some(Principal::Anonymous));
        }
    }

    #[test]
    fn without_a_key_every_request_may_come_in() {
        let open = Authenticator::new(None);
        let right = open.authorize(Access::Control, Vendor::OpenAi, &HeaderMap::new());
        assert_eq!(right.ok(), Some(Principal::Anonymous));
    }
}
