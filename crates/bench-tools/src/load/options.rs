//! Options of the load generator.

use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{BenchError, within};

/// Options of the load generator, one JSON object. The address is always 127.0.0.1.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadOptions {
    /// Port of the gateway.
    pub port: u16,
    /// Path of the requests.
    #[serde(default = "path")]
    pub path: String,
    /// Value of `model` in the requests.
    #[serde(default = "model")]
    pub model: String,
    /// Connections; each has one request in flight.
    #[serde(default = "connections")]
    pub connections: u32,
    /// Seconds before anything is counted.
    #[serde(default = "warm_up_s")]
    pub warm_up_s: u32,
    /// Seconds that are counted.
    #[serde(default = "seconds")]
    pub seconds: u32,
    /// Whether replies are streams of server-sent events.
    #[serde(default)]
    pub stream: bool,
    /// Events of a whole reply; a stream with another number is an error. 0: any number is right.
    #[serde(default)]
    pub events: u64,
    /// Different prefixes (system prompts); a request takes the next one in turn.
    #[serde(default = "groups")]
    pub groups: u32,
    /// Bytes of a prefix.
    #[serde(default = "shared_bytes")]
    pub shared_bytes: u32,
    /// Bytes of the user message, which no other request has.
    #[serde(default = "unique_bytes")]
    pub unique_bytes: u32,
    /// Requests after which a connection is closed and a new one made. 0: none is.
    #[serde(default)]
    pub requests_per_connection: u64,
    /// Requests per second, sent when they are due, whatever came of those before (an open loop). 0: a connection sends the next one
    /// when it has its reply.
    #[serde(default)]
    pub rate: u32,
    /// The gateway speaks TLS, with a certificate of the authority in this PEM file.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Processes of the gateway: their CPU time and memory are reported.
    #[serde(default)]
    pub pids: Vec<u32>,
}

fn path() -> String {
    "/v1/chat/completions".to_owned()
}

fn model() -> String {
    "mock-model".to_owned()
}

fn connections() -> u32 {
    64
}

fn warm_up_s() -> u32 {
    1
}

fn seconds() -> u32 {
    3
}

fn groups() -> u32 {
    16
}

fn shared_bytes() -> u32 {
    512
}

fn unique_bytes() -> u32 {
    128
}

impl LoadOptions {
    /// Reads and checks the options.
    pub fn from_json(json: &str) -> Result<Self, BenchError> {
        let options: Self = serde_json::from_str(json)?;
        within("port", options.port.into(), 1..=65_535)?;
        within("connections", options.connections.into(), 1..=10_000)?;
        within("warm_up_s", options.warm_up_s.into(), 0..=60)?;
        within("seconds", options.seconds.into(), 1..=600)?;
        within("rate", options.rate.into(), 0..=100_000)?;
        within("groups", options.groups.into(), 1..=100_000)?;
        within("shared_bytes", options.shared_bytes.into(), 0..=1 << 20)?;
        within("unique_bytes", options.unique_bytes.into(), 0..=1 << 20)?;
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let options = LoadOptions::from_json(r#"{"port": 9200, "stream": true}"#).unwrap();
        assert_eq!(
            (options.connections, options.path.as_str()),
            (64, "/v1/chat/completions")
        );
        for (json, error) in [
            (r#"{"port": 0}"#, "port must be between 1 and 65535"),
            (
                r#"{"port": 1, "seconds": 601}"#,
                "seconds must be between 1 and 600",
            ),
            (
                r#"{"port": 1, "host": "10.0.0.1"}"#,
                "bad options: unknown field `host`",
            ),
        ] {
            let said = LoadOptions::from_json(json).unwrap_err().to_string();
            assert!(said.starts_with(error), "{said}");
        }
    }
}
