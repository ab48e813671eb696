//! How many slots a gateway asks for, and has by itself where there is no server.
//!
//! The server has two numbers per gateway: the slots that it may use at most, and those that it
//! wants. The sum of the first never exceeds the limit. It divides the limit by what is wanted: all get it
//! where there is enough, and a part of half the rest; else those that want most get as many as each
//! other. A gateway that has more than its share gives out no slot until it has not, and says so with
//! its next question: only then has another gateway the slot. A gateway that is silent for
//! [`LEASE`] has none any more.

use std::time::Duration;

use super::planner::Part;
use super::slots::Slots;

/// A gateway that has not asked for so long has no slots for the others.
pub const LEASE: Duration = Duration::from_secs(3);
/// A server without data divides a limit by the number of gateways for so long: the others may be
/// on their way.
pub const GRACE: Duration = Duration::from_secs(8);
/// What has been wanted counts for so long, while there is enough for all.
const MEMORY: Duration = Duration::from_secs(3);
/// What has been wanted counts half after so many seconds, while there is not.
const USE_HALF_LIFE: f64 = 0.15;
/// The same of requests that were refused: they come again.
const REFUSED_HALF_LIFE: f64 = 0.5;
/// The same once slots are left: fewer were missing than requests were refused.
const SATISFIED_HALF_LIFE: f64 = 0.05;

/// What a gateway says of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotAsk {
    /// The limit.
    pub total: u64,
    /// Slots that this gateway may use now, or does.
    pub held: u64,
    /// Slots that it has use for.
    pub wanted: u64,
}

/// What it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotGrant {
    /// Slots that it may use from now on.
    pub allowed: u64,
    /// All gateways together want more than there are.
    pub short: bool,
}

/// Watches the slots of one limit, and decides what to ask for.
#[derive(Debug)]
pub struct SlotPlanner {
    allowed: u64,
    refused: u64,
    /// Requests refused of late.
    missing: f64,
    /// Slots wanted of late, and when they were.
    peak: f64,
    peak_at: Duration,
    looked: Option<Duration>,
    /// When the server was asked, and for how many.
    asked: Option<(Duration, u64)>,
    short: bool,
}

impl SlotPlanner {
    /// For slots of which this gateway has none until it is granted some.
    pub fn new(slots: &dyn Slots) -> Self {
        slots.allow(0);
        Self {
            allowed: 0,
            refused: slots.usage().refused,
            missing: 0.0,
            peak: 0.0,
            peak_at: Duration::ZERO,
            looked: None,
            asked: None,
            short: false,
        }
    }

    /// Slots that this gateway may use.
    pub fn allowed(&self) -> u64 {
        self.allowed
    }

    /// Whether all gateways together want more than there are.
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// Takes note of what is used, and says what to ask for now, if anything: where nothing is used,
    /// one question in `idle_pause`.
    pub fn ask(
        &mut self,
        slots: &dyn Slots,
        now: Duration,
        idle_pause: Duration,
    ) -> Option<SlotAsk> {
        let total = slots.total();
        if self.allowed > total {
            self.set(slots, total);
        }
        let (used, wanted) = self.want(slots, now);
        let wanted = wanted.min(total);
        let is_idle = used == 0
            && self.asked.is_some_and(|(at, before)| {
                now < at + idle_pause && before == wanted && self.allowed >= wanted
            });
        if is_idle {
            return None;
        }
        self.asked = Some((now, wanted));
        Some(SlotAsk {
            total,
            held: self.allowed.max(used),
            wanted,
        })
    }

    /// Puts in force what was got. True if slots are given up that another gateway waits for.
    pub fn granted(&mut self, slots: &dyn Slots, grant: SlotGrant) -> bool {
        let gives_up = grant.allowed < self.allowed;
        self.set(slots, grant.allowed);
        self.short = grant.short;
        gives_up
    }

    /// There is no server: this gateway has its own part of the limit.
    pub fn fill(&mut self, slots: &dyn Slots, part: Part) {
        (self.short, self.asked) = (false, None);
        let own = match part {
            Part::None => 0,
            Part::OneOf(parts) => (slots.total() / parts.max(1)).max(1),
        };
        self.set(slots, own);
    }

    fn set(&mut self, slots: &dyn Slots, allowed: u64) {
        if self.allowed != allowed {
            self.allowed = allowed;
            slots.allow(allowed);
        }
    }

    /// Slots in use, and those that there is use for.
    fn want(&mut self, slots: &dyn Slots, now: Duration) -> (u64, u64) {
        let usage = slots.usage();
        let since = now.saturating_sub(self.looked.unwrap_or(now)).as_secs_f64();
        self.looked = Some(now);
        let refused = usage.refused.saturating_sub(self.refused) as f64;
        self.refused = usage.refused;
        let kept = |half_life: f64| 0.5_f64.powf(since / half_life);
        let half_life = if refused == 0.0 && usage.used < self.allowed {
            SATISFIED_HALF_LIFE
        } else {
            REFUSED_HALF_LIFE
        };
        self.missing = refused.max(self.missing * kept(half_life));
        let wanted = (usage.used + usage.waiting) as f64 + self.missing.round();
        if self.short {
            self.peak = wanted.max(self.peak * kept(USE_HALF_LIFE));
        } else if wanted >= self.peak || now > self.peak_at + MEMORY {
            (self.peak, self.peak_at) = (wanted, now);
        }
        (usage.used, whole(self.peak.round()))
    }
}

#[expect(clippy::cast_sign_loss, reason = "not negative")]
fn whole(slots: f64) -> u64 {
    slots.max(0.0) as u64
}
