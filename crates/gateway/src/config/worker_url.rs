//! A worker's base URL, checked once.

use std::fmt;

use http::uri::Authority;
use url::Url;

/// `http://host:port` with an optional path prefix, without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerUrl {
    text: String,
    authority: Authority,
    host: String,
    port: u16,
    prefix: String,
}

impl WorkerUrl {
    /// Reads a URL as users write it; a bare `host:port` means `http://host:port`.
    ///
    /// # Errors
    /// Says what is wrong with the text, in a few words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let full = match text.split_once("://") {
            None if text.is_empty() => return Err("must not be empty"),
            None => format!("http://{text}"),
            Some(("http", _)) => text.to_owned(),
            Some(("https", _)) => return Err("https workers are not supported yet; use http://"),
            Some(("grpc" | "grpcs", _)) => {
                return Err("gRPC workers are not supported yet; use http://");
            }
            Some(_) => return Err("must start with http://"),
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
        let port = url.port().unwrap_or(80);
        if port == 0 {
            return Err("has port 0; expected 1..65535");
        }
        let authority = format!("{host}:{port}");
        Ok(Self {
            text: full.trim_end_matches('/').to_owned(),
            authority: authority.parse().map_err(|_| "has no usable host")?,
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            prefix: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// As users know it: `http://host:port[/prefix]`.
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
    fn a_bare_host_and_port_is_http() {
        assert_eq!(
            WorkerUrl::parse("gpu-1:30000").unwrap().as_str(),
            "http://gpu-1:30000"
        );
        assert_eq!(WorkerUrl::parse("http://gpu-1").unwrap().port(), 80);
    }

    #[test]
    fn what_is_not_a_worker_url_says_why() {
        for (text, why) in [
            ("", "empty"),
            ("ftp://a:1", "http://"),
            ("HTTP://a:1", "http://"),
            ("https://a:1", "https"),
            ("grpc://a:1", "gRPC"),
            ("http://", "not a URL"),
            ("http://a:99999", "not a URL"),
            ("http://a:0", "port 0"),
            ("http://u:p@a:1", "credentials"),
            ("http://a:1/?x=1", "query"),
        ] {
            let error = WorkerUrl::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
