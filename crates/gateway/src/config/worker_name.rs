//! A name that stands for several workers.

use std::net::IpAddr;

use rustls::pki_types::DnsName;

use super::worker_url::{Scheme, WorkerUrl};

/// Says that each address of a name is a worker.
const ADDRESSES: &str = "dns+";
/// Says that each target of a name's SRV records is a worker (RFC 2782), spoken to by HTTP.
const SERVICES: &str = "dns+srv://";
/// The same by HTTPS.
const SECURE_SERVICES: &str = "dns+srv+https://";

/// A name whose addresses, or whose services, are workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkerName {
    /// As it was given.
    text: String,
    /// With the name in place of the host; the port counts for addresses only.
    base: WorkerUrl,
    pub(crate) lookup: Lookup,
}

/// What is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Addresses: the port is given.
    Addresses,
    /// SRV records, which have ports.
    Services,
}

impl WorkerName {
    /// Reads `dns+http://name:port`, `dns+https://name:port`, `dns+srv://name` or
    /// `dns+srv+https://name`, each with an optional path prefix; `None` for another URL.
    pub(crate) fn parse(text: &str) -> Option<Result<Self, &'static str>> {
        let rest = text.strip_prefix(ADDRESSES)?;
        let service = |scheme: Scheme, rest: &str| {
            let url = format!("{}://{rest}", scheme.as_str());
            (url, Lookup::Services)
        };
        let (url, lookup) = if let Some(rest) = text.strip_prefix(SERVICES) {
            service(Scheme::Http, rest)
        } else if let Some(rest) = text.strip_prefix(SECURE_SERVICES) {
            service(Scheme::Https, rest)
        } else if rest.contains("://") {
            (rest.to_owned(), Lookup::Addresses)
        } else {
            return Some(Err(
                "must start with dns+http://, dns+https://, dns+srv:// or dns+srv+https://",
            ));
        };
        Some(WorkerUrl::parse(&url).and_then(|base| Self::new(text, base, lookup)))
    }

    fn new(text: &str, base: WorkerUrl, lookup: Lookup) -> Result<Self, &'static str> {
        if base.host().parse::<IpAddr>().is_ok() {
            return Err("must name a host: an address stands for itself");
        }
        let authority = base.as_str().split("://").last().unwrap_or_default();
        let authority = authority.split('/').next().unwrap_or_default();
        if lookup == Lookup::Services && authority.contains(':') {
            return Err("must have no port: SRV records have ports");
        }
        Ok(Self {
            text: text.to_owned(),
            base,
            lookup,
        })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The name that is looked up.
    pub(crate) fn host(&self) -> &str {
        self.base.host()
    }

    /// The worker at an address of the name. Its certificate has the name.
    pub(crate) fn at(&self, address: IpAddr) -> Option<WorkerUrl> {
        let host = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let name = DnsName::try_from(self.host().to_owned()).ok();
        let secure = self.base.scheme() == Scheme::Https;
        let url = self.url(&host, self.base.port())?;
        Some(url.with_tls_name(name.filter(|_| secure)))
    }

    /// The worker that a service record names.
    pub(crate) fn url(&self, host: &str, port: u16) -> Option<WorkerUrl> {
        let (scheme, prefix) = (self.base.scheme().as_str(), self.base.prefix());
        WorkerUrl::parse(&format!("{scheme}://{host}:{port}{prefix}")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> WorkerName {
        WorkerName::parse(text).unwrap().unwrap()
    }

    #[test]
    fn workers_are_at_the_addresses_of_a_name_or_at_its_services() {
        let name = parse("dns+http://workers.ns:8000/v2/");
        assert_eq!(
            (name.host(), name.lookup),
            ("workers.ns", Lookup::Addresses)
        );
        let at = |address: &str| name.at(address.parse().unwrap()).unwrap();
        assert_eq!(at("10.0.0.1").as_str(), "http://10.0.0.1:8000/v2");
        assert_eq!(at("fd00::1").as_str(), "http://[fd00::1]:8000/v2");
        let secure = parse("dns+https://workers");
        let url = secure.at("10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!((url.as_str(), url.port()), ("https://10.0.0.1:443", 443));
        assert_eq!(url.tls_name().map(AsRef::as_ref), Some("workers"));
        let services = parse("dns+srv://_http._tcp.workers.ns");
        assert_eq!(services.lookup, Lookup::Services);
        let url = services.url("w-0.workers.ns", 30_000).unwrap();
        assert_eq!(url.as_str(), "http://w-0.workers.ns:30000");
        let secure = parse("dns+srv+https://_https._tcp.w");
        assert_eq!(secure.url("w-0", 1).unwrap().as_str(), "https://w-0:1");
    }

    #[test]
    fn what_is_no_name_of_workers_is_refused_or_another_url() {
        assert!(WorkerName::parse("http://a:1").is_none());
        for wrong in [
            "dns+a:1",
            "dns+grpc://a:1",
            "dns+http://10.0.0.1:1",
            "dns+http://[::1]:1",
            "dns+srv://a:1",
            "dns+srv://",
            "dns+http://a:1?x",
            "dns+http://u:p@a:1",
        ] {
            assert!(WorkerName::parse(wrong).unwrap().is_err(), "{wrong}");
        }
    }
}
