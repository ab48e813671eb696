//! How much of a limit a gateway takes, gives back, or fills in itself.

use std::time::Duration;

use super::bucket::{Bucket, Held};

/// Without a request for so long, what is above the reserve goes back.
const IDLE_AFTER: Duration = Duration::from_secs(3);
/// Without a request for so long, everything goes back where another gateway has too little.
const YIELD_AFTER: Duration = Duration::from_secs(2);
/// Pause between two questions about a limit of which nothing is used.
const IDLE_PAUSE: Duration = Duration::from_millis(250);

/// What a gateway asks of the shared bucket of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Units to take; below zero, to give back.
    pub units: i64,
    /// What the bucket holds when it is full.
    pub at_once: u64,
    /// Units without which requests are refused or wait.
    pub needed: u64,
}

/// What it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// As many as were asked for, or what there is.
    pub units: u64,
    /// A gateway has needed more than it got a moment ago.
    pub short: bool,
}

/// The part of a limit that a gateway has to itself while there is no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing.
    None,
    /// One of so many equal parts.
    OneOf(u64),
}

/// Watches one bucket, and decides what to ask for.
#[derive(Debug)]
pub struct Planner {
    /// What the bucket would hold if nothing had been used.
    level: i64,
    refused: u64,
    /// Units used between two looks, of late.
    demand: u64,
    /// When any were wanted, used or not.
    wanted: Option<Duration>,
    asked: Option<Duration>,
    target: u64,
    short: bool,
    /// So many units are in the bucket that did not come from the server.
    unleased: u64,
    /// When it was filled in last, and what was left of a unit then, in parts of the period.
    filled: Option<(Duration, u128)>,
}

impl Planner {
    /// For a bucket whose content did not come from the server.
    pub fn new(bucket: &dyn Bucket) -> Self {
        let held = bucket.held();
        Self {
            level: held.level,
            refused: held.refused,
            demand: 0,
            wanted: None,
            asked: None,
            target: bucket.limit().units,
            short: false,
            unleased: held.level.max(0).unsigned_abs(),
            filled: None,
        }
    }

    /// What is meant to be held.
    pub fn target(&self) -> u64 {
        self.target
    }

    /// Whether a gateway has too little.
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// Takes note of what was used, and says what to ask for now, if anything. What is to go back
    /// has been taken out of the bucket.
    pub fn ask(&mut self, bucket: &dyn Bucket, gateways: u64, now: Duration) -> Option<Ask> {
        let (limit, held) = (bucket.limit(), bucket.held());
        let needed = self.note(held, now);
        let resting = self
            .wanted
            .map_or(IDLE_AFTER, |then| now.saturating_sub(then));
        let recent = resting < IDLE_AFTER || self.asked.is_none() || self.unleased > 0;
        let pause_over = self.asked.is_none_or(|then| now >= then + IDLE_PAUSE);
        if !(recent || pause_over) {
            return None;
        }
        self.asked = Some(now);
        let yields = self.short && resting >= YIELD_AFTER;
        let in_use = self.demand.saturating_mul(2).max(needed.min(1));
        let full = limit.reserve(gateways).max(in_use).min(limit.units);
        bucket.aim(full);
        self.target = if yields { 0 } else { full };
        let level = held.level.saturating_sub_unsigned(self.unleased);
        let mut units = 0_i64
            .saturating_add_unsigned(self.target)
            .saturating_sub(level);
        let at_once = limit.unreserved(gateways);
        if units < 0 {
            let most = match (yields, resting >= IDLE_AFTER) {
                // Not more than the shared bucket has room for.
                (true, _) => units.unsigned_abs().min(at_once),
                (false, true) => units.unsigned_abs(),
                (false, false) => 0,
            };
            let drawn = bucket.draw(most);
            self.level = self.level.saturating_sub_unsigned(drawn);
            units = 0_i64.saturating_sub_unsigned(drawn);
        }
        Some(Ask {
            units,
            at_once,
            needed,
        })
    }

    /// Pours in what was got.
    pub fn granted(&mut self, bucket: &dyn Bucket, grant: Grant) {
        let left = bucket.held().level.max(0).unsigned_abs();
        bucket.pour(grant.units);
        let surplus = bucket.draw(self.unleased.min(left));
        self.level = self.level.saturating_add_unsigned(grant.units);
        self.level = self.level.saturating_sub_unsigned(surplus);
        (self.unleased, self.filled) = (0, None);
        self.short = grant.short;
    }

    /// There is no server: fills in the gateway's own part of the limit, by the time since the last
    /// call.
    pub fn fill(&mut self, bucket: &dyn Bucket, part: Part, now: Duration) {
        let (limit, held) = (bucket.limit(), bucket.held());
        self.note(held, now);
        (self.short, self.asked) = (false, None);
        let parts = match part {
            Part::None => None,
            Part::OneOf(parts) => Some(parts.max(1)),
        };
        let most = parts.map_or(0, |parts| (limit.units / parts).max(1));
        self.target = most;
        bucket.aim(most.max(1));
        let (since, left) = self.filled.unwrap_or((now, 0));
        let passed = now.saturating_sub(since).as_nanos();
        let whole = limit.period.as_nanos() * u128::from(parts.unwrap_or(1));
        let due = left + parts.map_or(0, |_| passed * u128::from(limit.units));
        let units = u64::try_from(due / whole).unwrap_or(u64::MAX);
        let room = 0_i64
            .saturating_add_unsigned(most)
            .saturating_sub(held.level);
        if room >= 0 {
            let units = units.min(room.unsigned_abs());
            bucket.pour(units);
            self.level = self.level.saturating_add_unsigned(units);
        } else {
            let drawn = bucket.draw(room.unsigned_abs());
            self.level = self.level.saturating_sub_unsigned(drawn);
        }
        self.filled = Some((now, due % whole));
        self.unleased = self.level.max(0).unsigned_abs();
    }

    /// Everything goes back: this gateway stops, or shares the limit no longer.
    pub fn leave(&mut self, bucket: &dyn Bucket) -> Ask {
        let drawn = bucket.draw(u64::MAX).saturating_sub(self.unleased);
        Ask {
            units: 0_i64.saturating_sub_unsigned(drawn),
            ..Ask::default()
        }
    }

    /// Notes what was wanted since the last look; returns what is missing.
    fn note(&mut self, held: Held, now: Duration) -> u64 {
        let used = self.level.saturating_sub(held.level).max(0).unsigned_abs();
        let refused = held.refused.saturating_sub(self.refused);
        (self.level, self.refused) = (held.level, held.refused);
        self.unleased = self.unleased.min(held.level.max(0).unsigned_abs());
        self.demand = used.max(self.demand / 4 * 3);
        let missing = refused.saturating_add(held.level.min(0).unsigned_abs());
        if used > 0 || missing > 0 {
            self.wanted = Some(now);
        }
        missing
    }
}
