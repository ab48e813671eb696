//! A worker's base URL, checked once.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use http::uri::Authority;
use rustls::pki_types::{DnsName, ServerName};
use url::Url;

/// Of the hashes that URLs carry.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// `http://host:port` or `https://host:port` with an optional path prefix, spelt as it was
/// registered, without a trailing slash. Two are equal when they lead to the same place, however they are spelt.
#[derive(Clone, Debug)]
pub struct WorkerUrl {
    text: String,
    scheme: Scheme,
    authority: Authority,
    host: String,
    port: u16,
    prefix: String,
    /// The name in its certificate, where that is not the host.
    tls_name: Option<DnsName<'static>>,
    /// Of what makes places differ. Tables of hundreds of workers are built anew whenever one of
    /// them changes.
    hash: u64,
}

/// How a worker is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl WorkerUrl {
    /// Reads a URL as users write it; a bare `host:port` means `http://host:port`.
    ///
    /// # Errors
    /// Says what is wrong with the text, in a few words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("must be plain ASCII, without spaces and control characters");
        }
        let (scheme, full) = match text.split_once("://") {
            None if text.is_empty() => return Err("must not be empty"),
            None => (Scheme::Http, format!("http://{text}")),
            Some(("http", _)) => (Scheme::Http, text.to_owned()),
            Some(("https", _)) => (Scheme::Https, text.to_owned()),
            Some(("grpc" | "grpcs", _)) => {
                return Err("gRPC workers are not supported yet; use http://");
            }
            Some(_) => return Err("must start with http:// or https://"),
        };
        let url = Url::parse(&full).map_err(|_| "is not a URL; expected http://host:port")?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold credentials");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("must not have a query or fragment");
        }
        let host = url
            .host_str()
            .ok_or("has no host; expected http://host:port")?;
        let port = url.port().unwrap_or(scheme.default_port());
        if port == 0 {
            return Err("has port 0; expected 1..65535");
        }
        let authority = format!("{host}:{port}");
        let prefix = url.path().trim_end_matches('/');
        let bare = host.trim_matches(['[', ']']);
        if scheme == Scheme::Https && ServerName::try_from(bare).is_err() {
            return Err("has a host that no certificate can name");
        }
        Ok(Self {
            hash: HASHES.hash_one((scheme, &authority, prefix)),
            scheme,
            // As it was given: this is how users know their workers.
            text: full.trim_end_matches('/').to_owned(),
            host: bare.to_owned(),
            port,
            prefix: prefix.to_owned(),
            tls_name: None,
            authority: authority.parse().map_err(|_| "has no usable host")?,
        })
    }

    /// The same place, whose certificate has this name.
    pub(crate) fn with_tls_name(self, tls_name: Option<DnsName<'static>>) -> Self {
        Self { tls_name, ..self }
    }

    /// The name in its certificate, where that is not the host.
    pub(crate) fn tls_name(&self) -> Option<&DnsName<'static>> {
        self.tls_name.as_ref()
    }

    /// What users wrote, for messages; not where it may hold a password.
    pub(crate) fn quote(text: &str) -> String {
        if text.contains('@') {
            "(not repeated here: it seems to hold credentials)".to_owned()
        } else {
            format!("{text:?}")
        }
    }

    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// As it was registered: `http[s]://host[:port][/prefix]`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// For the `host` header.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Name or address to connect to, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path put before every request's path; empty or `/like/this`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl PartialEq for WorkerUrl {
    fn eq(&self, other: &Self) -> bool {
        // Parsing has made the host's letters small, so bytes are compared.
        std::ptr::eq(self, other)
            || self.hash == other.hash
                && self.scheme == other.scheme
                && self.authority.as_str() == other.authority.as_str()
                && self.prefix == other.prefix
    }
}

impl Eq for WorkerUrl {}

impl Hash for WorkerUrl {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl fmt::Display for WorkerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_url() {
        let url = WorkerUrl::parse("http://[::1]:8000/v2/").unwrap();
        assert_eq!((url.host(), url.port(), url.prefix()), ("::1", 8000, "/v2"));
        assert_eq!(url.authority(), "[::1]:8000");
        assert_eq!(url.as_str(), "http://[::1]:8000/v2");
    }

    #[test]
    fn https_is_another_place_with_another_default_port() {
        let url = WorkerUrl::parse("https://[::1]/v2/").unwrap();
        assert_eq!(
            (url.host(), url.port(), url.scheme()),
            ("::1", 443, Scheme::Https)
        );
        assert_eq!(url.as_str(), "https://[::1]/v2");
        let plain = WorkerUrl::parse("http://[::1]:443/v2").unwrap();
        assert_ne!(url, plain);
    }

    #[test]
    fn a_bare_host_and_port_is_http() {
        assert_eq!(
            WorkerUrl::parse("gpu-1:30000").unwrap().as_str(),
            "http://gpu-1:30000"
        );
        assert_eq!(WorkerUrl::parse("http://gpu-1").unwrap().port(), 80);
    }

    #[test]
    fn spellings_that_lead_to_the_same_place_are_equal_and_shown_as_given() {
        let known = WorkerUrl::parse("http://localhost:8000/a").unwrap();
        for odd in [
            "http://LOCALHOST:8000/a",
            "http://localhost:08000/a/",
            "localhost:8000/b/../a",
            "http:///localhost:8000/./a//",
        ] {
            let url = WorkerUrl::parse(odd).unwrap();
            assert_eq!(url, known, "{odd}");
        }
        let (short, long) = (WorkerUrl::parse("127.1:1"), WorkerUrl::parse("127.0.0.1:1"));
        assert_eq!(short, long);
        assert_eq!(short.unwrap().host(), "127.0.0.1");
        assert_ne!(WorkerUrl::parse("http://localhost:8001/a").unwrap(), known);
        assert_ne!(WorkerUrl::parse("http://localhost:8000/A").unwrap(), known);
    }

    #[test]
    fn a_url_is_shown_as_users_write_it() {
        for text in [
            "http://gpu-1:30000",
            "http://gpu-1",
            "http://gpu-1:80",
            "http://10.0.0.1:80/v2",
            "http://[::1]:80",
            "http://[::1]",
            "http://h:1/prefix",
            "http://GPU-Rack3:1",
            "http://h:080",
        ] {
            assert_eq!(WorkerUrl::parse(text).unwrap().as_str(), text);
        }
        let (given, not) = (WorkerUrl::parse("h:80"), WorkerUrl::parse("http://h/"));
        assert_eq!(given, not);
    }

    #[test]
    fn a_bad_worker_url_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "empty"),
            ("ftp://a:1", "http://"),
            ("HTTP://a:1", "http://"),
            ("https://", "not a URL"),
            ("https://a..b:1", "certificate"),
            ("grpc://a:1", "gRPC"),
            ("http://", "not a URL"),
            ("http://a:99999", "not a URL"),
            ("http://a:0", "port 0"),
            ("http://u:p@a:1", "credentials"),
            ("http://a:1/?x=1", "query"),
            ("http://a:1\n", "control"),
            ("http://a:1 ", "spaces"),
            (" http://a:1", "spaces"),
            ("http://a\t:1", "control"),
            ("http://\u{e4}:1", "ASCII"),
        ] {
            let error = WorkerUrl::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
