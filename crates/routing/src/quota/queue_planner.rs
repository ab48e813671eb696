//! How many requests may wait at one of several gateways that bound a queue together.
//!
//! No place is taken in advance: a request may wait while, as far as this gateway knows, fewer wait at all
//! gateways than may. So a burst at one of them finds all of the queue that is free. What others have
//! waiting comes with each round. Where gateways did not know of each other's requests in time, and
//! more wait than may, each that has more than its share pushes out those that came last: gateways
//! with most of them get as many places as each other. What is known of others is a round old, so
//! only what stays too much for longer than that is pushed out.
//!
//! Where requests are refused at a gateway while others have the places, it is to get as many as they
//! have: these let no more in than their share, and what they have waiting is served.

use std::time::Duration;

use super::planner::Part;
use super::shared_queue::{QueueRoom, SharedQueue};

/// Requests that were refused come again: they count half after so many seconds, while too many wait.
const REFUSED_HALF_LIFE: f64 = 0.5;

/// Too many wait for so long before some are pushed out: by then every gateway has said again what
/// waits there, for the longest pause between two rounds is 30 ms.
pub(super) const CONFIRMED_AFTER: Duration = Duration::from_millis(40);

/// A limit that was lowered takes no place from what waits. For so long that is what was allowed
/// before: by then all gateways have said what waits.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// What a gateway says of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueAsk {
    /// Requests that wait here.
    pub waiting: u64,
    /// Places that this gateway has use for.
    pub wanted: u64,
}

/// What it hears: what all gateways have said, this one included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueAnswer {
    /// By gateways, in an order that is the same for all of them.
    pub asks: Vec<QueueAsk>,
    /// Which of them is this gateway's own.
    pub own: usize,
}

/// Watches one queue, and decides what may wait here.
#[derive(Debug)]
pub struct QueuePlanner {
    room: QueueRoom,
    refused: u64,
    /// Requests refused of late.
    missing: f64,
    looked: Option<Duration>,
    asked: Option<(Duration, QueueAsk)>,
    /// Where more than this wait, some are pushed out. It is above the limit after that was lowered,
    /// for those that wait keep their places then.
    bar: u64,
    /// The limit, and until when what was allowed before still is.
    total: u64,
    lowered_until: Duration,
    /// Since when more than the bar wait.
    above_since: Option<Duration>,
    short: bool,
}

impl QueuePlanner {
    /// For a queue of which nothing is known of other gateways.
    pub fn new(queue: &dyn SharedQueue) -> Self {
        queue.set_room(QueueRoom::ALL);
        Self {
            room: QueueRoom::ALL,
            refused: queue.usage().refused,
            missing: 0.0,
            looked: None,
            asked: None,
            bar: queue.total(),
            total: queue.total(),
            lowered_until: Duration::ZERO,
            above_since: None,
            short: false,
        }
    }

    /// What this gateway has of the queue.
    pub fn room(&self) -> QueueRoom {
        self.room
    }

    /// Whether all gateways together want more places than there are.
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// Takes note of what waits, and what to say of it now, if anything: where nothing waits
    /// anywhere, one question in `idle_pause`.
    pub fn ask(
        &mut self,
        queue: &dyn SharedQueue,
        now: Duration,
        idle_pause: Duration,
    ) -> Option<QueueAsk> {
        let ask = self.want(queue, now);
        let nothing = QueueAsk::default();
        let is_idle = ask == nothing
            && match self.asked {
                None => queue.total() == 0,
                Some((_, before)) if before != nothing => false,
                Some((at, _)) => {
                    let is_known = self.room.elsewhere == 0 && now < at + idle_pause;
                    is_known || queue.total() == 0
                }
            };
        if is_idle {
            return None;
        }
        self.asked = Some((now, ask));
        Some(ask)
    }

    /// Puts in force what was heard. Returns how many requests were pushed out.
    pub fn heard(&mut self, queue: &dyn SharedQueue, answer: &QueueAnswer, now: Duration) -> u64 {
        let total = queue.total();
        let of = |what: fn(&QueueAsk) -> u64| answer.asks.iter().map(what).collect::<Vec<_>>();
        let (waiting, mut wanted) = (of(|ask| ask.waiting), of(|ask| ask.wanted));
        let (all, all_wanted): (u64, u64) = (waiting.iter().sum(), wanted.iter().sum());
        let own = waiting.get(answer.own).copied().unwrap_or(0);
        self.short = all_wanted > total;
        let mut most = u64::MAX;
        if let Some(own_wanted) = wanted.get_mut(answer.own)
            && self.short
            && all_wanted > *own_wanted
        {
            // As many as it would get if it wanted all of them.
            *own_wanted = total;
            most = share(&wanted, answer.own, total);
        }
        let elsewhere = all.saturating_sub(own);
        self.set_room(queue, QueueRoom { elsewhere, most });
        self.set_bar(total, [all, elsewhere], now);
        if all <= self.bar {
            self.above_since = None;
            return 0;
        }
        if now < *self.above_since.get_or_insert(now) + CONFIRMED_AFTER {
            return 0;
        }
        queue.shrink(share(&waiting, answer.own, self.bar))
    }

    /// There is no server: this gateway has its own part of the queue for new requests. Those that
    /// wait stay.
    pub fn fill(&mut self, queue: &dyn SharedQueue, part: Part) {
        (self.short, self.asked, self.above_since) = (false, None, None);
        let most = match part {
            Part::None => 0,
            Part::OneOf(0 | 1) => u64::MAX,
            Part::OneOf(parts) => (queue.total() / parts).max(1),
        };
        self.set_room(queue, QueueRoom { elsewhere: 0, most });
    }

    /// Follows the limit: at once when it is raised, with what waits when it is lowered.
    fn set_bar(&mut self, total: u64, [all, elsewhere]: [u64; 2], now: Duration) {
        if total < self.total {
            self.lowered_until = now + SETTLED_AFTER;
        }
        self.total = total;
        let before = if now < self.lowered_until {
            self.bar
        } else {
            self.bar.min(all)
        };
        // What waits here alone was within the limit when it came.
        let alone = if elsewhere == 0 { all } else { 0 };
        self.bar = total.max(before).max(alone);
    }

    fn set_room(&mut self, queue: &dyn SharedQueue, room: QueueRoom) {
        if self.room != room {
            self.room = room;
            queue.set_room(room);
        }
    }

    fn want(&mut self, queue: &dyn SharedQueue, now: Duration) -> QueueAsk {
        let (usage, total) = (queue.usage(), queue.total());
        let since = now.saturating_sub(self.looked.unwrap_or(now)).as_secs_f64();
        self.looked = Some(now);
        let refused = usage.refused.saturating_sub(self.refused);
        self.refused = usage.refused;
        // Where there is a place, those that were refused have not come again.
        let is_full = usage.waiting >= self.room.of(total);
        let before = if is_full || refused > 0 {
            self.missing * 0.5_f64.powf(since / REFUSED_HALF_LIFE)
        } else {
            0.0
        };
        self.missing = before.max(refused as f64);
        let wanted = usage.waiting.saturating_add(whole(self.missing.round()));
        QueueAsk {
            waiting: usage.waiting,
            wanted: wanted.min(total.max(usage.waiting)),
        }
    }
}

#[expect(clippy::cast_sign_loss, reason = "not negative")]
fn whole(requests: f64) -> u64 {
    requests.max(0.0) as u64
}

/// What one gateway gets of so many places, where each wants some: those that want most get as many
/// as each other, and the first ones of them what is left. It stays the same when another gateway is
/// down to what it gets.
pub(super) fn share(wants: &[u64], own: usize, total: u64) -> u64 {
    let mut order: Vec<_> = wants.iter().copied().zip(0..).collect();
    order.sort_unstable();
    let mut rest = total;
    let mut left = order.as_slice();
    while let Some(((want, at), others)) = left.split_first() {
        let level = rest / left.len() as u64;
        if *want > level {
            let odd = rest - level * left.len() as u64;
            let before = left.iter().filter(|(_, other)| *other < own).count() as u64;
            let most = level + u64::from(before < odd);
            return wants.get(own).map_or(0, |want| most.min(*want));
        }
        if *at == own {
            return *want;
        }
        rest -= want;
        left = others;
    }
    0
}
