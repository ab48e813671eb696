//! What this gateway knows, sent to one that has just started.

use std::sync::Arc;

use routing::Policy;
use routing::prefix::Export;
use routing::replicas::{Limits, MAX_BLOCKS_SENT, Part, Placement};

use super::directory::Directory;

/// Nodes of an index that are sent at most, those used last. With 48 KiB per part and 20 parts per
/// second all are sent in seconds.
pub(super) const MAX_NODES: usize = 16_384;
/// Holders of a prefix that are sent at most.
const MAX_HOLDERS: usize = 1024;
/// Bytes that one gateway is sent at most.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// A gateway that is being filled.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) channel: String,
    pub(super) to: u64,
    exports: Vec<(Arc<dyn Policy>, Export)>,
    /// Placements that were read, and did not fit into the last part.
    rest: Vec<(Vec<u64>, Vec<u64>)>,
    sent: usize,
}

impl Filling {
    pub(super) fn new(channel: String, to: u64, exports: Vec<(Arc<dyn Policy>, Export)>) -> Self {
        Self {
            channel,
            to,
            exports,
            rest: Vec::new(),
            sent: 0,
        }
    }

    /// The next part; it may be empty.
    pub(super) fn part(&mut self, directory: &Directory) -> Part {
        let mut part = Part::default();
        loop {
            let Some((workers, blocks)) = self.rest.last() else {
                if self.read(directory) {
                    continue;
                }
                break;
            };
            let placement = Placement { workers, blocks };
            let fits = part.has_room(placement, Limits::GATEWAY.message_bytes);
            if !fits && !part.is_empty() {
                break;
            }
            part.push(placement);
            self.rest.pop();
        }
        self.sent += part.bytes();
        if self.sent >= MAX_BYTES {
            self.exports.clear();
            self.rest.clear();
        }
        part
    }

    /// Whether all has been sent.
    pub(super) fn is_done(&self) -> bool {
        self.rest.is_empty() && self.exports.is_empty()
    }

    /// Reads some more placements; false if there are none.
    fn read(&mut self, directory: &Directory) -> bool {
        let Some((policy, export)) = self.exports.last_mut() else {
            return false;
        };
        let rest = &mut self.rest;
        policy.export(export, &mut |blocks, slots| {
            let hashes = slots.iter().filter_map(|slot| directory.hash_of(*slot));
            let workers: Vec<u64> = hashes.take(MAX_HOLDERS).collect();
            if !workers.is_empty() {
                let sent = blocks.get(..MAX_BLOCKS_SENT).unwrap_or(blocks);
                rest.push((workers, sent.to_vec()));
            }
        });
        // Taken from the end: the least recently used comes first.
        rest.reverse();
        if export.is_done() {
            self.exports.pop();
        }
        true
    }
}
