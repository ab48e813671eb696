//! The gateway's own key.

use http::header::{self, HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use crate::config::Secret;
use crate::error::Error;

/// Checks `Authorization: Bearer <key>` (RFC 6750), in time that does not tell the key.
#[derive(Debug)]
pub(super) struct Auth {
    key: Option<Secret>,
}

impl Auth {
    pub(super) fn new(key: Option<Secret>) -> Self {
        Self { key }
    }

    /// Lets everybody in when there is no key.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Error> {
        let Some(key) = &self.key else { return Ok(()) };
        let shown = headers
            .get(header::AUTHORIZATION)
            .map(HeaderValue::as_bytes);
        let shown = shown.and_then(|value| value.strip_prefix(b"Bearer "));
        let matches = shown.is_some_and(|shown| shown.ct_eq(key.expose().as_bytes()).into());
        if matches {
            Ok(())
        } else {
            Err(Error::Unauthorized)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shown: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(shown) = shown {
            headers.insert(header::AUTHORIZATION, shown.parse().unwrap());
        }
        Auth::new(Some("s3cret".to_owned().into()))
            .check(&headers)
            .is_ok()
    }

    #[test]
    fn only_the_right_bearer_key_opens() {
        assert!(check(Some("Bearer s3cret")));
        for wrong in [
            "Bearer s3cre",
            "Bearer s3cret2",
            "bearer s3cret",
            "s3cret",
            "Basic s3cret",
            "Bearer ",
        ] {
            assert!(!check(Some(wrong)), "{wrong}");
        }
        assert!(!check(None));
    }

    #[test]
    fn without_a_key_everybody_may_come_in() {
        assert!(Auth::new(None).check(&HeaderMap::new()).is_ok());
    }
}
