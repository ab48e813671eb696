//! The options of traces: where they go, and which are recorded.

use std::fmt;

use super::error::ConfigError;
use super::options::Options;
use super::sections::ConnectionSection;
use super::tls::{Verification, WorkerTlsSection};
use super::worker_url::WorkerUrl;

/// The port at which collectors take OTLP over HTTP.
const HTTP_PORT: u16 = 4318;
/// The path at which they take traces there.
const HTTP_PATH: &str = "/v1/traces";

/// What carries spans to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Otlp {
    Grpc,
    /// Protobuf over HTTP/1.1.
    Http,
}

/// A collector of traces. Its URL shows as it is called.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    pub(crate) url: WorkerUrl,
    pub(crate) otlp: Otlp,
}

/// How requests are traced.
#[derive(Clone, Debug)]
pub(crate) struct TraceSection {
    pub(crate) collector: Collector,
    /// Share of traces without a parent that are recorded.
    pub(crate) sample_ratio: f64,
    /// What the collector is shown, and which authorities are trusted: as for workers, but its
    /// certificate is always checked.
    pub(crate) tls: WorkerTlsSection,
    pub(crate) connections: ConnectionSection,
}

impl Collector {
    /// Reads an endpoint as users write it.
    ///
    /// # Errors
    /// Says what is wrong with the text, in a few words.
    fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some((scheme, _)) = text.split_once("://")
            && !matches!(scheme, "http" | "https")
        {
            return Err("must start with http:// or https://, or be host:port");
        }
        let url = WorkerUrl::parse(text)?;
        let otlp = if url.port() == HTTP_PORT || !url.prefix().is_empty() {
            Otlp::Http
        } else {
            Otlp::Grpc
        };
        Ok(Self { url, otlp })
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, authority) = (self.url.scheme().as_str(), self.url.authority());
        let path = match (self.otlp, self.url.prefix()) {
            (Otlp::Grpc, _) => "",
            (Otlp::Http, "") => HTTP_PATH,
            (Otlp::Http, path) => path,
        };
        write!(f, "{scheme}://{authority}{path}")
    }
}

impl TraceSection {
    /// `None` where nothing is traced.
    pub(crate) fn new(options: &Options) -> Option<Self> {
        let collector = options
            .enable_trace
            .then(|| Collector::parse(&options.otlp_traces_endpoint));
        Some(Self {
            collector: collector?.ok()?,
            sample_ratio: options.trace_sample_ratio,
            tls: WorkerTlsSection {
                verification: Verification::Full,
                name: None,
                ..WorkerTlsSection::from(options)
            },
            connections: ConnectionSection::from(options),
        })
    }
}

pub(super) fn check_traces(options: &Options) -> Result<(), ConfigError> {
    let endpoint = &options.otlp_traces_endpoint;
    match Collector::parse(endpoint) {
        Err(why) if options.enable_trace => {
            let value = WorkerUrl::quote(endpoint);
            Err(ConfigError::invalid("otlp_traces_endpoint", value, why))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_or_port_of_an_endpoint_says_what_is_spoken() {
        for (text, otlp, called) in [
            ("localhost:4317", Otlp::Grpc, "http://localhost:4317"),
            ("http://c:4317/", Otlp::Grpc, "http://c:4317"),
            ("https://c", Otlp::Grpc, "https://c:443"),
            ("[::1]:4317", Otlp::Grpc, "http://[::1]:4317"),
            ("c:4318", Otlp::Http, "http://c:4318/v1/traces"),
            ("https://c/v1/traces", Otlp::Http, "https://c:443/v1/traces"),
            ("http://c:4317/otlp/", Otlp::Http, "http://c:4317/otlp"),
        ] {
            let collector = Collector::parse(text).unwrap();
            assert_eq!(
                (collector.otlp, collector.to_string().as_str()),
                (otlp, called),
                "{text}"
            );
        }
    }

    #[test]
    fn endpoint_that_is_none_is_refused_where_it_is_used() {
        for endpoint in [
            "",
            "grpc://c:4317",
            "c:0",
            "c:port",
            "http://u:secret@c",
            "http://c/v1/traces?a=b",
            "a b",
        ] {
            let mut options = Options {
                otlp_traces_endpoint: endpoint.to_owned(),
                ..Options::default()
            };
            check_traces(&options).unwrap();
            assert!(TraceSection::new(&options).is_none());
            options.enable_trace = true;
            let error = check_traces(&options).unwrap_err().to_string();
            assert!(error.contains("'otlp_traces_endpoint'"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn certificate_of_a_collector_is_checked_even_where_those_of_workers_are_not() {
        let options = Options {
            enable_trace: true,
            tls_skip_verify: true,
            worker_tls_name: Some("engine.svc".to_owned()),
            ..Options::default()
        };
        let tls = TraceSection::new(&options).unwrap().tls;
        assert_eq!((tls.verification, tls.name), (Verification::Full, None));
    }
}
