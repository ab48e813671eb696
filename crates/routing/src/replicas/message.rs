//! The format of a message: little-endian words of 64 bits.
//!
//! ```text
//! magic, format, kind | sender | version of the sender | sequence | sent at (Unix ms) | loads, words, flag
//! per load:      worker | requests, waiting | queued tokens | tokens of memory
//! per placement: workers, blocks | worker … | block …
//! ```
//!
//! Workers are known by the hash of their URL, blocks by the hash of their text. A message holds
//! nothing else, so no text of a prompt leaves a gateway.

use std::iter;

use crate::LoadCounts;

/// Blocks of a placement that are sent: 256 KiB of text. Further ones would hardly change a choice.
pub const MAX_BLOCKS_SENT: usize = 4096;

/// "SMGR" and the version of the format. Messages of another format are ignored.
const MAGIC: u64 = 0x534d_4752_0001;
pub(super) const HEADER_WORDS: usize = 6;
const LOAD_WORDS: usize = 4;
const WORD: usize = size_of::<u64>();
/// A flag beside the number of loads, and the number of words between them.
const FLAG: u64 = 1 << 63;
const LENGTH: u32 = 32;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To all: placements and loads since the last one.
    Batch,
    /// To one gateway: it is asked for what it knows.
    Ask,
    /// To the one that asked: a part of that.
    Part,
    /// To all: the sender stops.
    Leave,
}

const KINDS: [Kind; 4] = [Kind::Batch, Kind::Ask, Kind::Part, Kind::Leave];

/// The sender of a message, its time, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is for.
    pub kind: Kind,
    /// The sender, a random number per process.
    pub sender: u64,
    /// The first 8 bytes of its version, padded with zeros.
    pub version: [u8; 8],
    /// The number of the message among those of its sender and kind.
    pub sequence: u64,
    /// By the sender's clock, in milliseconds since 1970.
    pub sent_at_ms: u64,
    /// A batch lists all loads that are not zero; a part is the last one.
    pub complete: bool,
}

/// The load of a worker, as one gateway counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLoad {
    /// The hash of its URL.
    pub worker: u64,
    /// What is in flight.
    pub counts: LoadCounts,
}

/// Workers that hold the leading blocks of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement<'a> {
    /// The hashes of their URLs.
    pub workers: &'a [u64],
    /// The hashes of the blocks.
    pub blocks: &'a [u64],
}

/// Bytes that are no message of this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A message that has been read. Its buffer is used again for the next one.
#[derive(Debug, Default)]
pub struct Message {
    words: Vec<u64>,
    loads: usize,
}

impl Header {
    pub(super) fn write(&self, loads: usize, words: &mut Vec<u64>) {
        let kind = KINDS.iter().position(|kind| *kind == self.kind);
        let flag = if self.complete { FLAG } else { 0 };
        words.extend([
            MAGIC << 8 | kind.unwrap_or(0) as u64,
            self.sender,
            u64::from_le_bytes(self.version),
            self.sequence,
            self.sent_at_ms,
            flag | loads as u64,
        ]);
    }
}

impl WorkerLoad {
    pub(super) const WORDS: usize = LOAD_WORDS;

    pub(super) fn write(&self, words: &mut Vec<u64>) {
        let LoadCounts {
            requests,
            waiting,
            queued_tokens,
            kv_tokens,
        } = self.counts;
        let requests = u64::from(narrow(requests)) << 32 | u64::from(narrow(waiting));
        words.extend([self.worker, requests, queued_tokens, kv_tokens]);
    }

    fn read(words: &[u64]) -> Option<Self> {
        let [worker, requests, queued_tokens, kv_tokens] = *words else {
            return None;
        };
        // A malicious message must not make sums overflow.
        let bounded = |tokens: u64| tokens.min(1 << 40);
        Some(Self {
            worker,
            counts: LoadCounts {
                requests: (requests >> 32) as usize,
                waiting: (requests as u32) as usize,
                queued_tokens: bounded(queued_tokens),
                kv_tokens: bounded(kv_tokens),
            },
        })
    }
}

impl<'a> Placement<'a> {
    pub(super) fn words(&self) -> usize {
        1 + self.workers.len() + self.blocks.len()
    }

    pub(super) fn write(&self, words: &mut Vec<u64>) {
        words.push((self.workers.len() as u64) << 32 | self.blocks.len() as u64);
        words.extend_from_slice(self.workers);
        words.extend_from_slice(self.blocks);
    }

    /// The placement at the beginning of some words, and the words after it.
    fn read(words: &'a [u64]) -> Option<(Self, &'a [u64])> {
        let (sizes, rest) = words.split_first()?;
        let (workers, blocks) = ((sizes >> 32) as usize, (*sizes as u32) as usize);
        let (workers, rest) = rest.split_at_checked(workers)?;
        let (blocks, rest) = rest.split_at_checked(blocks)?;
        let is_valid = !workers.is_empty() && (1..=MAX_BLOCKS_SENT).contains(&blocks.len());
        is_valid.then_some((Self { workers, blocks }, rest))
    }

    /// All placements in some words, up to the first that is malformed.
    pub(super) fn all(mut words: &'a [u64]) -> impl Iterator<Item = Self> {
        iter::from_fn(move || {
            let (placement, rest) = Self::read(words)?;
            words = rest;
            Some(placement)
        })
    }
}

impl Message {
    /// Reads a message in place of the last one. Nothing of it counts unless all is well-formed.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Header, Malformed> {
        let (whole, rest) = bytes.as_chunks::<WORD>();
        self.words.clear();
        self.words
            .extend(whole.iter().map(|word| u64::from_le_bytes(*word)));
        let header = self.header().filter(|_| rest.is_empty());
        let header = header.ok_or(Malformed)?;
        let read: usize = self.placements().map(|placement| placement.words()).sum();
        let placements = HEADER_WORDS + self.loads * LOAD_WORDS;
        if placements + read == self.words.len() {
            Ok(header)
        } else {
            Err(Malformed)
        }
    }

    fn header(&mut self) -> Option<Header> {
        let [kind, sender, version, sequence, sent_at_ms, loads] =
            *self.words.first_chunk::<HEADER_WORDS>()?;
        if kind >> 8 != MAGIC {
            return None;
        }
        if (loads & !FLAG) >> LENGTH != self.words.len() as u64 {
            return None;
        }
        self.loads = (loads as u32) as usize;
        Some(Header {
            kind: *KINDS.get((kind & 0xff) as usize)?,
            sender,
            version: version.to_le_bytes(),
            sequence,
            sent_at_ms,
            complete: loads & FLAG != 0,
        })
    }

    /// The loads of the message that was read last.
    pub fn loads(&self) -> impl Iterator<Item = WorkerLoad> {
        let words = self.words.get(HEADER_WORDS..).unwrap_or_default();
        let loads = words.chunks_exact(LOAD_WORDS).take(self.loads);
        loads.filter_map(WorkerLoad::read)
    }

    /// Its placements.
    pub fn placements(&self) -> impl Iterator<Item = Placement<'_>> {
        let after = HEADER_WORDS.saturating_add(self.loads.saturating_mul(LOAD_WORDS));
        Placement::all(self.words.get(after..).unwrap_or_default())
    }
}

/// The words of a message as bytes. The header gets the length.
pub(super) fn to_bytes(words: &mut [u64]) -> Vec<u8> {
    let length = (words.len() as u64) << LENGTH;
    if let Some(sizes) = words.get_mut(HEADER_WORDS - 1) {
        *sizes |= length;
    }
    let mut bytes = Vec::with_capacity(words.len() * WORD);
    for word in &*words {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
