//! Options of the mock worker.

use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{BenchError, within};

/// Options of the mock worker, one JSON object. The address is always 127.0.0.1.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerOptions {
    /// Ports to listen on, a worker each; 0 = any free port.
    pub ports: Vec<u16>,
    /// Name of the served model.
    #[serde(default = "model")]
    pub model: String,
    /// Bytes of text in a reply that is no stream.
    #[serde(default = "reply_bytes")]
    pub reply_bytes: u32,
    /// Chunks of a stream; `[DONE]` follows as one event more.
    #[serde(default = "chunks")]
    pub chunks: u32,
    /// Microseconds before each chunk; 0 = the whole stream in one write.
    #[serde(default)]
    pub interval_us: u64,
    /// Certificate and key, two PEM files: the workers speak TLS.
    #[serde(default)]
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Seconds after which the process ends, however it was left.
    #[serde(default = "lifetime_s")]
    pub lifetime_s: u32,
}

fn model() -> String {
    "mock-model".to_owned()
}

fn reply_bytes() -> u32 {
    256
}

fn chunks() -> u32 {
    100
}

fn lifetime_s() -> u32 {
    3600
}

impl WorkerOptions {
    /// Reads and checks the options.
    pub fn from_json(json: &str) -> Result<Self, BenchError> {
        let options: Self = serde_json::from_str(json)?;
        within("ports", options.ports.len() as u64, 1..=1000)?;
        within("reply_bytes", options.reply_bytes.into(), 0..=1 << 24)?;
        within("chunks", options.chunks.into(), 1..=100_000)?;
        within("interval_us", options.interval_us, 0..=60_000_000)?;
        within("lifetime_s", options.lifetime_s.into(), 1..=86_400)?;
        Ok(options)
    }
}
