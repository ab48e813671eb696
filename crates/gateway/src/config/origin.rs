//! Browser origins (RFC 6454) as users write them.

use url::{Host, Url};

/// An entry of `cors_allowed_origins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AllowedOrigin {
    /// `*`.
    Any,
    /// Scheme, host and port, as browsers write them in `Origin`.
    One(String),
}

impl AllowedOrigin {
    /// Reads `*` or `scheme://host[:port]`, whatever its case, with or without a slash at the end.
    ///
    /// # Errors
    /// Why it is no origin.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let url =
            Url::parse(text).map_err(|_| "is no origin; expected * or https://host[:port]")?;
        let bare = url.path().trim_matches('/').is_empty()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !bare {
            return Err("is more than an origin; expected * or https://host[:port]");
        }
        match url.host() {
            Some(Host::Domain("")) | None => Err("has no host; expected * or https://host[:port]"),
            Some(Host::Domain(name)) if name.contains('*') => {
                Err("has a wildcard in its host, which is not supported; list each origin")
            }
            Some(host) => {
                let port = url
                    .port()
                    .map(|port| format!(":{port}"))
                    .unwrap_or_default();
                Ok(Self::One(format!("{}://{host}{port}", url.scheme())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_an_origin_are_the_one_that_browsers_send() {
        for spelling in [
            "https://ui.example",
            "https://ui.example/",
            "HTTPS://UI.example",
            "https://ui.example:443",
        ] {
            let origin = AllowedOrigin::parse(spelling);
            assert_eq!(
                origin,
                Ok(AllowedOrigin::One("https://ui.example".into())),
                "{spelling}"
            );
        }
        let with_port = AllowedOrigin::parse("http://[::1]:3000");
        assert_eq!(
            with_port,
            Ok(AllowedOrigin::One("http://[::1]:3000".into()))
        );
        let extension = AllowedOrigin::parse("chrome-extension://abc");
        assert_eq!(
            extension,
            Ok(AllowedOrigin::One("chrome-extension://abc".into()))
        );
        assert_eq!(AllowedOrigin::parse("*"), Ok(AllowedOrigin::Any));
    }

    #[test]
    fn what_no_browser_sends_is_refused() {
        for wrong in [
            "",
            "ui.example",
            "https://",
            "https://ui/app",
            "https://me@ui",
            "https://*.ui",
            "null",
        ] {
            assert!(AllowedOrigin::parse(wrong).is_err(), "{wrong}");
        }
    }
}
