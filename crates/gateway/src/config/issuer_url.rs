//! Where an issuer of tokens, or its keys, are.

use std::fmt;

use url::{Host, Url};

use super::worker_url::WorkerUrl;

/// A URL whose answer decides which tokens open the control plane: over TLS, or within the
/// machine.
#[derive(Clone, Debug)]
pub(crate) struct IssuerUrl {
    /// Up to the path.
    base: WorkerUrl,
    /// Path and query.
    path: String,
}

impl IssuerUrl {
    /// Reads a URL as users and issuers write it.
    ///
    /// # Errors
    /// Says what is wrong with the text, in a few words.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let url = Url::parse(text).map_err(|_| "is not a URL; expected https://host")?;
        let is_local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => return Err("has no host; expected https://host"),
        };
        if url.scheme() != "https" && !(url.scheme() == "http" && is_local) {
            return Err("must start with https://, or be of this machine");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold credentials");
        }
        if url.fragment().is_some() {
            return Err("must not have a fragment");
        }
        let origin = url.origin().ascii_serialization();
        let base = WorkerUrl::parse(&origin)?;
        let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
        Ok(Self {
            base,
            path: path.to_owned(),
        })
    }

    pub(crate) fn base(&self) -> &WorkerUrl {
        &self.base
    }

    /// Path and query.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.base, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_stay_as_they_are() {
        let url = IssuerUrl::parse("http://localhost:81/a/keys?p=b%20c").unwrap();
        assert_eq!(url.path(), "/a/keys?p=b%20c");
        assert_eq!(url.to_string(), "http://localhost:81/a/keys?p=b%20c");
        assert_eq!(IssuerUrl::parse("http://[::1]").unwrap().path(), "/");
        let url = IssuerUrl::parse("https://issuer.example/a/").unwrap();
        assert_eq!((url.base().port(), url.path()), (443, "/a/"));
    }

    #[test]
    fn other_machines_are_reached_over_tls_only() {
        for text in [
            "http://issuer.example",
            "http://localhost.example",
            "http://10.0.0.1",
            "ftp://localhost",
        ] {
            assert!(IssuerUrl::parse(text).is_err(), "{text}");
        }
    }
}
