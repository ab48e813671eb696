//! Traces in Mooncake's format: one JSON object per line.
//!
//! `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [..]}`, where
//! each hash id stands for a block of the prompt (Qin et al., FAST 2025). Lines may also have
//! `max_tokens`, the limit that the request sets, `tenant`, the name of the client, and
//! `prompt_tokens`, the tokens that an engine has counted, which hold in place of `input_length`.
//! Lines with neither tokens nor blocks are left out: such requests reached no worker.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

use routing::prefix::BLOCK;
use serde::Deserialize;
use thiserror::Error;

use crate::engine::mix;

/// Longest accepted prompt, in tokens.
const LONGEST: u32 = 1 << 26;
/// `max_tokens` of a request that sets none.
const UNLIMITED: u32 = 1 << 20;
/// Start of the page hash chain.
const SEED: u64 = 0x6d6f_6f6e_6361_6b65;

/// A trace cannot be used.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read the trace: {0}")]
    Read(#[from] io::Error),
    /// A line is invalid.
    #[error("line {number}: {why}")]
    Line {
        /// Number of the line, counted from 1.
        number: usize,
        /// Reason.
        why: LineError,
    },
    /// The trace has no requests.
    #[error("the trace is empty")]
    Empty,
}

/// A line of a trace is invalid.
#[derive(Debug, Error)]
pub enum LineError {
    /// Not UTF-8.
    #[error("not UTF-8")]
    Encoding,
    /// Not JSON, or not the expected fields.
    #[error("{}", within_line(.0))]
    Json(#[from] serde_json::Error),
    /// Not a time.
    #[error("timestamp {0} is not a time")]
    Time(f64),
    /// Longer than any real prompt.
    #[error("input_length {0} is too long")]
    Length(u32),
}

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
    #[serde(default)]
    prompt_tokens: Option<u32>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    tenant: Option<String>,
}

#[derive(Clone, Debug)]
struct Row {
    ms: f64,
    input: u32,
    output: u32,
    longest_output: u32,
    tenant: Option<u32>,
    blocks: Range<usize>,
}

/// Requests in order of time; requests of equal time are in order of lines.
#[derive(Clone, Debug)]
pub struct Trace {
    rows: Vec<Row>,
    ids: Vec<u64>,
    /// Per block: a hash of it and all blocks before it.
    pages: Vec<u64>,
    sorted: bool,
    tenants: Vec<String>,
}

impl Trace {
    /// Reads up to `limit` requests of a file.
    pub fn open(path: &Path, limit: usize) -> Result<Self, TraceError> {
        Self::read(BufReader::new(File::open(path)?), limit)
    }

    /// Reads up to `limit` requests; empty lines are skipped.
    pub fn read(from: impl BufRead, limit: usize) -> Result<Self, TraceError> {
        let mut trace = Self {
            rows: Vec::new(),
            ids: Vec::new(),
            pages: Vec::new(),
            sorted: true,
            tenants: Vec::new(),
        };
        for (index, line) in from.lines().enumerate() {
            if trace.rows.len() >= limit {
                break;
            }
            let bad = |why| TraceError::Line {
                number: index + 1,
                why,
            };
            let line = line.map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => bad(LineError::Encoding),
                _ => TraceError::Read(error),
            })?;
            if !line.trim().is_empty() {
                let line = parse(&line).map_err(bad)?;
                if line.input_length > 0 || !line.hash_ids.is_empty() {
                    trace.push(line);
                }
            }
        }
        trace.sorted = trace.rows.is_sorted_by(|one, next| one.ms <= next.ms);
        trace.rows.sort_by(|one, next| one.ms.total_cmp(&next.ms));
        let first = trace.rows.first().ok_or(TraceError::Empty)?.ms;
        trace.rows.iter_mut().for_each(|row| row.ms -= first);
        Ok(trace)
    }

    fn push(&mut self, line: Line) {
        let start = self.ids.len();
        let mut chain = SEED;
        for id in line.hash_ids {
            chain = mix(chain, id);
            self.ids.push(id);
            self.pages.push(chain);
        }
        let tenant = line.tenant.map(|name| self.tenant_index(name));
        self.rows.push(Row {
            ms: line.timestamp,
            input: line.prompt_tokens.unwrap_or(line.input_length),
            output: line.output_length,
            longest_output: line.max_tokens.unwrap_or(UNLIMITED),
            tenant,
            blocks: start..self.ids.len(),
        });
    }

    fn tenant_index(&mut self, name: String) -> u32 {
        let known = self.tenants.iter().position(|tenant| *tenant == name);
        let index = known.unwrap_or_else(|| {
            self.tenants.push(name);
            self.tenants.len() - 1
        });
        index as u32
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Always false, because an empty trace is an error.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether the lines were in order of time.
    pub fn was_sorted(&self) -> bool {
        self.sorted
    }

    /// Time from the first request to the last, in milliseconds.
    pub fn span_ms(&self) -> f64 {
        self.rows.last().map_or(0.0, |row| row.ms)
    }

    /// Time from the first request to this one, in milliseconds.
    pub(super) fn at_ms(&self, request: usize) -> f64 {
        self.rows[request].ms
    }

    /// Output tokens.
    pub(super) fn output(&self, request: usize) -> u32 {
        self.rows[request].output
    }

    /// The most output tokens that the request allows.
    pub(super) fn longest_output(&self, request: usize) -> u32 {
        self.rows[request].longest_output
    }

    /// Index of the request's tenant, if the trace names one.
    pub(super) fn tenant(&self, request: usize) -> Option<usize> {
        self.rows[request].tenant.map(|index| index as usize)
    }

    /// Names of the tenants.
    pub(super) fn tenants(&self) -> &[String] {
        &self.tenants
    }

    /// Tokens of the prompt: whole blocks, or `input_length` if that is more.
    pub(super) fn tokens(&self, request: usize, block_tokens: u32) -> u64 {
        let row = &self.rows[request];
        (row.blocks.len() as u64 * u64::from(block_tokens)).max(row.input.into())
    }

    /// Ids of the blocks.
    pub(super) fn ids(&self, request: usize) -> &[u64] {
        &self.ids[self.rows[request].blocks.clone()]
    }

    /// Writes a block of a policy's index for each block of the trace. Tokens beyond the trace's
    /// blocks become text that no other request shares.
    pub(super) fn write_prompt(&self, request: usize, block_tokens: u32, to: &mut Vec<u8>) {
        to.clear();
        for id in self.ids(request) {
            to.extend_from_slice([id.to_le_bytes(); BLOCK / 8].as_flattened());
        }
        let tokens = self.tokens(request, block_tokens);
        let bytes = tokens * BLOCK as u64 / u64::from(block_tokens);
        let own = (!(request as u64)).to_le_bytes();
        let missing = (bytes as usize).saturating_sub(to.len());
        to.extend(own.iter().cycle().take(missing));
    }

    /// Pages of the blocks, as a prefix cache has them.
    pub(super) fn pages(&self, request: usize) -> &[u64] {
        &self.pages[self.rows[request].blocks.clone()]
    }
}

fn parse(line: &str) -> Result<Line, LineError> {
    let parsed: Line = serde_json::from_str(line)?;
    if !parsed.timestamp.is_finite() || parsed.timestamp < 0.0 {
        return Err(LineError::Time(parsed.timestamp));
    }
    let length = parsed.input_length.max(parsed.prompt_tokens.unwrap_or(0));
    if length > LONGEST {
        return Err(LineError::Length(length));
    }
    Ok(parsed)
}

/// The message with its column; the caller adds the line.
fn within_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((why, _)) => format!("{why} (column {})", error.column()),
        None => text,
    }
}
