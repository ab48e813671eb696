//! Makes the messages of one gateway, within a bound on their size.

use std::collections::HashMap;
use std::time::Duration;

use super::journal::Journal;
use super::message::{self, HEADER_WORDS, Header, Kind, MAX_BLOCKS_SENT, Placement, WorkerLoad};
use crate::LoadCounts;

/// Pause between two batches. The first news after a longer silence go out at once.
const INTERVAL: Duration = Duration::from_millis(10);
/// Full batches per second: what bounds the bytes.
const FULL_PER_SEC: f64 = 20.0;
/// Full batches that may be made at once after a silence.
const BURST: f64 = 2.0;
/// Share of a full batch that a batch waits for.
const LEAST_ROOM: f64 = 0.25;
/// A batch is made at least this often, so that a gateway that stops is noticed; each of them
/// lists all loads.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Share of a message that loads may take which have changed.
const LOADS_SHARE: usize = 2;

/// What names a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// A random number per process.
    pub id: u64,
    /// The first 8 bytes of its version.
    pub version: [u8; 8],
}

/// The size of messages.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a message at most. When placements do not fit, the longest are cut.
    pub message_bytes: usize,
    /// Blocks of a placement at most.
    pub placement_blocks: usize,
}

impl Limits {
    /// Those of a gateway: with 20 batches per second at most 983 kB/s.
    pub const GATEWAY: Self = Self {
        message_bytes: 48 * 1024,
        placement_blocks: MAX_BLOCKS_SENT,
    };
}

/// What a message lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// All that there is.
    All,
    /// A part of it.
    Some,
}

impl List {
    fn of(complete: impl Into<usize>) -> Self {
        if complete.into() == 1 {
            Self::All
        } else {
            Self::Some
        }
    }
}

/// What has been put into messages so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxTotals {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Placements in them.
    pub placements: u64,
    /// Placements for which there was no room.
    pub dropped: u64,
}

/// Makes messages.
#[derive(Debug)]
pub struct Outbox {
    identity: Identity,
    limits: Limits,
    sequence: u64,
    /// When the last batch was made.
    batch_at: Option<Duration>,
    /// Bytes that could be sent then, besides it.
    allowance: f64,
    /// When the last batch with all loads was made.
    complete_at: Option<Duration>,
    /// The loads that others know, without those that are zero.
    published: HashMap<u64, LoadCounts>,
    journal: Vec<u64>,
    words: Vec<u64>,
    totals: OutboxTotals,
}

/// The time by two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// Since some fixed moment.
    pub now: Duration,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

impl Outbox {
    /// Makes messages of this gateway.
    pub fn new(identity: Identity, limits: Limits) -> Self {
        Self {
            identity,
            limits,
            sequence: 0,
            batch_at: None,
            allowance: BURST * limits.message_bytes as f64,
            complete_at: None,
            published: HashMap::new(),
            journal: Vec::new(),
            words: Vec::new(),
            totals: OutboxTotals::default(),
        }
    }

    /// What has been put into messages so far.
    pub fn totals(&self) -> OutboxTotals {
        self.totals
    }

    /// The next batch lists all loads: messages may have been lost.
    pub fn resync(&mut self) {
        self.complete_at = None;
    }

    /// When a batch can be made with the news of this moment.
    pub fn next(&self, now: Duration) -> Duration {
        let full = self.limits.message_bytes as f64;
        let lacking = (LEAST_ROOM * full - self.allowance).max(0.0) / (FULL_PER_SEC * full);
        let pause = INTERVAL.max(Duration::from_secs_f64(lacking));
        self.batch_at.map_or(now, |at| now.max(at + pause))
    }

    /// Bytes that may be sent at this moment.
    fn allowance(&self, now: Duration) -> f64 {
        let full = self.limits.message_bytes as f64;
        let since = now.saturating_sub(self.batch_at.unwrap_or(now));
        let grown = self.allowance + since.as_secs_f64() * FULL_PER_SEC * full;
        grown.min(BURST * full)
    }

    /// When a batch is made although there are no news.
    pub fn next_heartbeat(&self) -> Duration {
        self.complete_at.map_or(Duration::ZERO, |at| at + HEARTBEAT)
    }

    /// Placements since the last batch, and loads that have changed; `None` if there is nothing to
    /// say yet, or the last batch was a moment ago. `loads` are those of all workers.
    pub fn batch(
        &mut self,
        clocks: Clocks,
        journal: &Journal,
        loads: impl Iterator<Item = WorkerLoad>,
    ) -> Option<Vec<u8>> {
        if clocks.now < self.next(clocks.now) {
            return None;
        }
        let since = self.complete_at.map(|at| clocks.now.saturating_sub(at));
        let complete = since.is_none_or(|since| since >= HEARTBEAT);
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        let allowance = self.allowance(clocks.now);
        let full = self.limits.message_bytes;
        let bytes = if complete {
            full
        } else {
            full.min(whole(allowance))
        };
        let room = bytes / size_of::<u64>();
        let for_loads = if complete { room } else { room / LOADS_SHARE };
        let most = for_loads.saturating_sub(HEADER_WORDS) / WorkerLoad::WORDS;
        let changed = self.changed_loads(List::of(complete), most, loads);
        // A list that is cut is not complete.
        let complete = complete && changed.len() < most;
        journal.take(&mut self.journal);
        let is_empty = changed.is_empty() && self.journal.is_empty() && !complete;
        if !is_empty {
            let header = self.header(Kind::Batch, clocks, List::of(complete));
            header.write(changed.len(), &mut words);
            for load in &changed {
                load.write(&mut words);
            }
            self.write_placements(room, &mut words);
            self.batch_at = Some(clocks.now);
            self.allowance = allowance - size_of_val(&*words) as f64;
        }
        if complete {
            self.complete_at = Some(clocks.now);
        }
        let message = (!is_empty).then(|| self.finish(&mut words));
        self.words = words;
        message
    }

    /// A message without contents.
    pub fn notice(&mut self, kind: Kind, clocks: Clocks) -> Vec<u8> {
        let mut words = Vec::new();
        let header = self.header(kind, clocks, List::All);
        header.write(0, &mut words);
        self.finish(&mut words)
    }

    /// A part of what this gateway knows.
    pub fn part(&mut self, clocks: Clocks, part: &Part, last: Last) -> Vec<u8> {
        let mut words = Vec::new();
        let header = self.header(Kind::Part, clocks, List::of(last == Last::Yes));
        header.write(0, &mut words);
        words.extend_from_slice(&part.words);
        self.totals.placements += part.placements;
        self.finish(&mut words)
    }

    fn header(&mut self, kind: Kind, clocks: Clocks, list: List) -> Header {
        if kind == Kind::Batch {
            self.sequence += 1;
        }
        Header {
            kind,
            sender: self.identity.id,
            version: self.identity.version,
            sequence: self.sequence,
            sent_at_ms: clocks.unix_ms,
            complete: list == List::All,
        }
    }

    fn finish(&mut self, words: &mut [u64]) -> Vec<u8> {
        let bytes = message::to_bytes(words);
        self.totals.messages += 1;
        self.totals.bytes += bytes.len() as u64;
        bytes
    }

    /// Loads that others do not know yet; all that are not zero for a complete list. At most `most`;
    /// the others wait for the next message.
    fn changed_loads(
        &mut self,
        list: List,
        most: usize,
        loads: impl Iterator<Item = WorkerLoad>,
    ) -> Vec<WorkerLoad> {
        let none = LoadCounts::default();
        let known = |published: &HashMap<_, _>, worker| *published.get(&worker).unwrap_or(&none);
        let news = loads.filter(|load| {
            let before = known(&self.published, load.worker);
            load.counts != before || list == List::All && load.counts != none
        });
        let news: Vec<_> = news.take(most).collect();
        for load in &news {
            if load.counts == none {
                self.published.remove(&load.worker);
            } else {
                self.published.insert(load.worker, load.counts);
            }
        }
        news
    }

    /// Writes the placements of the journal, all cut to the length at which they fit.
    fn write_placements(&mut self, room: usize, words: &mut Vec<u64>) {
        let room = room.saturating_sub(words.len());
        let most = self.limits.placement_blocks.max(1);
        let words_at = |cut: usize| -> usize {
            let all = Placement::all(&self.journal);
            all.map(|placement| placement.words() - placement.blocks.len().saturating_sub(cut))
                .sum()
        };
        let (mut fits, mut excess) = (1, most + 1);
        if words_at(most) <= room {
            fits = most;
        } else {
            while excess - fits > 1 {
                let middle = usize::midpoint(fits, excess);
                if words_at(middle) <= room {
                    fits = middle;
                } else {
                    excess = middle;
                }
            }
        }
        let end = words.len() + room;
        for Placement { workers, blocks } in Placement::all(&self.journal) {
            let blocks = blocks.get(..fits).unwrap_or(blocks);
            let placement = Placement { workers, blocks };
            if words.len() + placement.words() <= end {
                placement.write(words);
                self.totals.placements += 1;
            } else {
                self.totals.dropped += 1;
            }
        }
    }
}

#[expect(clippy::cast_sign_loss, reason = "not negative")]
fn whole(bytes: f64) -> usize {
    bytes.max(0.0) as usize
}

/// Placements for a gateway that has asked for them.
#[derive(Clone, Debug, Default)]
pub struct Part {
    words: Vec<u64>,
    placements: u64,
}

impl Part {
    /// Adds a placement; of a long one the leading blocks.
    pub fn push(&mut self, placement: Placement<'_>) {
        let Placement { workers, blocks } = placement;
        let blocks = blocks.get(..MAX_BLOCKS_SENT).unwrap_or(blocks);
        if !blocks.is_empty() && !workers.is_empty() {
            Placement { workers, blocks }.write(&mut self.words);
            self.placements += 1;
        }
    }

    /// The size of its message.
    pub fn bytes(&self) -> usize {
        (HEADER_WORDS + self.words.len()) * size_of::<u64>()
    }

    /// Whether its message would be within a bound with this placement, too.
    pub fn has_room(&self, placement: Placement<'_>, message_bytes: usize) -> bool {
        self.bytes() + placement.words() * size_of::<u64>() <= message_bytes
    }

    /// Whether it carries nothing.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

/// Whether a part is the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// It is.
    Yes,
    /// More follow.
    No,
}
