//! Gateways that divide a limit on requests at a time through a simulated server.

use std::collections::BTreeMap;
use std::num::Wrapping;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use proptest::prelude::*;

use super::{GRACE, LEASE, Part, SlotAsk, SlotCount, SlotGrant, SlotPlanner, SlotUse, Slots};

const IDLE_PAUSE: Duration = Duration::from_millis(100);

/// What the server has of one gateway.
#[derive(Clone, Copy)]
struct Row {
    held: u64,
    wanted: u64,
    asked_at: u64,
}

/// A limit, as the script of the server divides it.
#[derive(Default)]
struct Server {
    rows: BTreeMap<usize, Row>,
    grace: u64,
    gateways: usize,
}

impl Server {
    fn ask(&mut self, own: usize, known: u64, ask: SlotAsk, now: u64) -> SlotGrant {
        let lease = LEASE.as_millis() as u64;
        self.rows.retain(|_, row| row.asked_at + lease >= now);
        if self.rows.is_empty() {
            self.grace = now + GRACE.as_millis() as u64;
        }
        self.rows.remove(&own);
        let others: u64 = self.rows.values().map(|row| row.held).sum();
        let mut row = Row {
            held: ask.held,
            wanted: ask.wanted,
            asked_at: now,
        };
        self.rows.insert(own, row);
        let (mut allowed, short) = self.divide(own, ask, now);
        if self.grace > now {
            allowed = allowed.min((ask.total / known.max(1)).max(1));
        }
        if allowed > ask.held {
            allowed = allowed.min(ask.total.saturating_sub(others)).max(ask.held);
            row.held = allowed;
            self.rows.insert(own, row);
        }
        SlotGrant { allowed, short }
    }

    fn divide(&self, own: usize, ask: SlotAsk, now: u64) -> (u64, bool) {
        let sum: u64 = self.rows.values().map(|row| row.wanted).sum();
        let count = self.rows.len().max(self.gateways) as u64;
        if sum <= ask.total {
            let rest = ask.total - sum;
            let part = (rest / (2 * count)).max(u64::from(rest >= count));
            return (ask.wanted + part, false);
        }
        let mut wants: Vec<_> = self
            .rows
            .iter()
            .map(|(id, row)| (row.wanted, *id))
            .collect();
        wants.sort_unstable();
        let mut rest = ask.total;
        for at in 0..wants.len() {
            let left = (wants.len() - at) as u64;
            let level = rest / left;
            if wants[at].0 <= level {
                rest -= wants[at].0;
                continue;
            }
            let mut ids: Vec<_> = wants[at..].iter().map(|(_, id)| *id).collect();
            ids.sort_unstable();
            let Some(place) = ids.iter().position(|id| *id == own) else {
                break;
            };
            let turn = (place as u64 + 1 + now / 1000) % left;
            let more = u64::from(turn < rest - level * left);
            return (ask.wanted.min(level + more), true);
        }
        (ask.wanted, true)
    }
}

/// What becomes of a request that finds no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Otherwise {
    Waits,
    IsRefused,
}

/// Slots, and requests that wait for one.
#[derive(Debug)]
struct Door {
    slots: SlotCount,
    waiting: AtomicU64,
}

impl Slots for Door {
    fn total(&self) -> u64 {
        self.slots.total()
    }

    fn usage(&self) -> SlotUse {
        SlotUse {
            waiting: self.waiting.load(Relaxed),
            ..self.slots.usage()
        }
    }

    fn allow(&self, slots: u64) {
        self.slots.allow(slots);
    }
}

struct Gateway {
    door: Door,
    planner: SlotPlanner,
    next: u64,
    coming: Option<(u64, SlotGrant)>,
    /// When the requests in flight end.
    ends: Vec<u64>,
    served: u64,
    refused: u64,
}

impl Gateway {
    fn new(total: u64) -> Self {
        let door = Door {
            slots: SlotCount::new(total),
            waiting: AtomicU64::new(0),
        };
        Self {
            planner: SlotPlanner::new(&door),
            door,
            next: 0,
            coming: None,
            ends: Vec::new(),
            served: 0,
            refused: 0,
        }
    }

    /// One more request, which ends then.
    fn serve(&mut self, end: u64) -> bool {
        let served = self.door.slots.take();
        if served {
            self.ends.push(end);
            self.served += 1;
        }
        served
    }
}

struct Stage {
    delay: u64,
    server: Server,
    gateways: Vec<Gateway>,
    random: Wrapping<u64>,
    now: u64,
    most_used: u64,
}

/// Requests that come to gateways.
#[derive(Clone, Copy, Debug)]
struct Load<'a> {
    /// How long they take in the mean, milliseconds.
    mean_ms: u64,
    /// How many would be in flight at each gateway if all were let in.
    wanted: &'a [u64],
    otherwise: Otherwise,
}

impl Stage {
    fn new(total: u64, count: usize, delay: u64) -> Self {
        Self {
            delay,
            server: Server {
                gateways: count,
                ..Server::default()
            },
            gateways: (0..count).map(|_| Gateway::new(total)).collect(),
            random: Wrapping(delay + count as u64 + total),
            now: 0,
            most_used: 0,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random = self.random * Wrapping(6_364_136_223_846_793_005) + Wrapping(1);
        (self.random.0 >> 33) % below
    }

    fn exchange(&mut self) {
        let (now, known) = (self.now, self.gateways.len() as u64);
        for at in 0..self.gateways.len() {
            let mut pause = 10 + self.random(20);
            let gateway = &mut self.gateways[at];
            let (planner, door) = (&mut gateway.planner, &gateway.door);
            if let Some((when, grant)) = gateway.coming
                && when <= now
            {
                if planner.granted(door, grant) {
                    pause = 1;
                }
                gateway.coming = None;
                gateway.next = now + pause;
            }
            if gateway.coming.is_none() && gateway.next <= now {
                match planner.ask(door, Duration::from_millis(now), IDLE_PAUSE) {
                    Some(ask) => {
                        let grant = self.server.ask(at, known, ask, now);
                        gateway.coming = Some((now + self.delay, grant));
                    }
                    None => gateway.next = now + pause,
                }
            }
        }
    }

    fn used(&self) -> u64 {
        let used = self.gateways.iter().map(|it| it.door.usage().used);
        used.sum()
    }

    /// Requests for so long; returns the mean in flight.
    fn run(&mut self, millis: u64, load: Load<'_>) -> f64 {
        self.most_used = 0;
        let mut sum_used = 0;
        let mut due = vec![0.0; self.gateways.len()];
        for _ in 0..millis {
            self.exchange();
            for (at, due) in due.iter_mut().enumerate() {
                *due += load.wanted[at] as f64 / load.mean_ms as f64;
                self.serve(at, due, load);
            }
            self.most_used = self.most_used.max(self.used());
            sum_used += self.used();
            self.now += 1;
        }
        sum_used as f64 / millis as f64
    }

    /// What ends, is waiting, or comes at a gateway at this moment.
    fn serve(&mut self, at: usize, due: &mut f64, load: Load<'_>) {
        let now = self.now;
        let gateway = &mut self.gateways[at];
        let before = gateway.ends.len();
        gateway.ends.retain(|end| *end > now);
        (gateway.ends.len()..before).for_each(|_| gateway.door.slots.give_back());
        let mut waiting = gateway.door.waiting.load(Relaxed);
        loop {
            let length = load.mean_ms / 2 + self.random(load.mean_ms) + 1;
            let gateway = &mut self.gateways[at];
            let usage = gateway.door.usage();
            if waiting > 0 {
                if usage.used >= gateway.planner.allowed() || !gateway.serve(now + length) {
                    break;
                }
                waiting -= 1;
            } else if *due >= 1.0 {
                *due -= 1.0;
                if load.otherwise == Otherwise::Waits && usage.used >= gateway.planner.allowed() {
                    waiting += 1;
                } else if !gateway.serve(now + length) {
                    gateway.refused += 1;
                }
            } else {
                break;
            }
        }
        if load.otherwise == Otherwise::Waits {
            while *due >= 1.0 {
                *due -= 1.0;
                waiting = 1000.min(waiting + 1);
            }
        }
        self.gateways[at].door.waiting.store(waiting, Relaxed);
    }
}

fn refused_at(mean_ms: u64, wanted: &[u64]) -> Load<'_> {
    Load {
        mean_ms,
        wanted,
        otherwise: Otherwise::IsRefused,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn sum_is_never_above_the_limit_and_reaches_it_however_requests_are_spread(
        (total, count, delay) in (8..400_u64, 1..9_usize, 0..30_u64),
        mean_ms in 100..2000_u64,
        shares in prop::collection::vec(prop::collection::vec(0..4_u64, 8), 1..4),
        load in 15..60_u64,
        waits in any::<bool>(),
    ) {
        let mut stage = Stage::new(total, count, delay);
        let otherwise = if waits { Otherwise::Waits } else { Otherwise::IsRefused };
        for shares in &shares {
            let shares = &shares[..count];
            let sum: u64 = shares.iter().sum();
            let of = |share: &u64| (share * total * load / 10).div_ceil(sum.max(1));
            let mut wanted: Vec<_> = shares.iter().map(of).collect();
            if sum == 0 {
                wanted[0] = total * load / 10;
            }
            let load = Load { mean_ms, wanted: &wanted, otherwise };
            // Those of before end.
            stage.run(GRACE.as_millis() as u64 + 2 * mean_ms, load);
            prop_assert!(stage.most_used <= total, "{} of {total}", stage.most_used);
            let used = stage.run(5000, load);
            prop_assert!(stage.most_used <= total, "{} of {total}", stage.most_used);
            // From the end of a request to the next one a slot is empty: for a millisecond, or, where
            // requests are refused, until one comes to this gateway.
            let gap = total as f64 / mean_ms as f64;
            let empty = if waits { gap } else { gap + 1.5 * count as f64 };
            prop_assert!(used >= 0.98 * total as f64 - empty - 0.5, "{used} of {total}, {wanted:?}");
        }
    }
}

#[test]
fn few_requests_are_never_refused_and_a_burst_finds_the_rest_soon() {
    let mut stage = Stage::new(100, 4, 2);
    stage.run(10_000, refused_at(500, &[0; 4]));
    stage.run(10_000, refused_at(500, &[8; 4]));
    let refused: u64 = stage.gateways.iter().map(|it| it.refused).sum();
    assert_eq!(refused, 0);
    stage.run(5000, refused_at(500, &[0; 4]));
    let allowed: Vec<_> = stage
        .gateways
        .iter()
        .map(|it| it.planner.allowed())
        .collect();
    assert_eq!(allowed, [12; 4]);
    // All at one gateway.
    let burst = [100_000, 0, 0, 0];
    stage.run(70, refused_at(10_000, &burst));
    assert!(stage.used() >= 60, "{}", stage.used());
    stage.run(180, refused_at(10_000, &burst));
    assert!(stage.used() >= 98, "{}", stage.used());
}

#[test]
fn gateways_that_want_more_than_there_is_get_as_much_as_each_other() {
    let mut stage = Stage::new(50, 4, 2);
    let wanted = [500, 500, 500, 3];
    stage.run(10_000, refused_at(300, &wanted));
    let before: Vec<_> = stage.gateways.iter().map(|it| it.served).collect();
    stage.run(20_000, refused_at(300, &wanted));
    let served = stage.gateways.iter().zip(before);
    let served: Vec<_> = served.map(|(it, before)| it.served - before).collect();
    let mean = served[..3].iter().sum::<u64>() / 3;
    assert!(
        served[..3].iter().all(|it| it.abs_diff(mean) * 20 < mean),
        "{served:?}"
    );
    // Ten a second came to the last one: most find a slot that was kept.
    assert!(served[3] >= 120, "{served:?}");
}

#[test]
fn requests_that_come_again_at_once_count_once() {
    let mut stage = Stage::new(12, 2, 2);
    stage.run(10_000, refused_at(200, &[1000, 2]));
    // The second one was refused often at first.
    for gateway in &stage.gateways {
        let before = gateway.door.usage().used;
        while gateway.door.usage().refused < 500 {
            gateway.door.slots.take();
        }
        (before..gateway.door.usage().used).for_each(|_| gateway.door.slots.give_back());
    }
    stage.run(2000, refused_at(200, &[1000, 2]));
    let allowed = stage.gateways[0].planner.allowed();
    assert!(allowed >= 9, "{allowed}");
}

#[test]
fn slots_of_a_gateway_that_is_gone_are_used_by_others_after_seconds() {
    let mut stage = Stage::new(60, 3, 2);
    stage.run(12_000, refused_at(300, &[900; 3]));
    stage.gateways.pop();
    stage.server.gateways = 2;
    stage.run(3500, refused_at(300, &[900; 2]));
    let used = stage.run(2000, refused_at(300, &[900; 2]));
    assert!(used > 58.0, "{used}");
}

#[test]
fn server_that_has_lost_its_data_lets_no_gateway_have_what_others_may_still_use() {
    let mut stage = Stage::new(100, 4, 2);
    stage.run(12_000, refused_at(20_000, &[40; 4]));
    assert!(stage.used() <= 100);
    stage.server = Server {
        gateways: 1,
        ..Server::default()
    };
    // Only the first one reaches the server again, for now.
    for gateway in &mut stage.gateways[1..] {
        gateway.next = u64::MAX;
        gateway.planner.fill(&gateway.door, Part::OneOf(4));
    }
    for _ in 0..5 {
        stage.run(1000, refused_at(20_000, &[400; 4]));
        let allowed: Vec<_> = stage
            .gateways
            .iter()
            .map(|it| it.planner.allowed())
            .collect();
        assert!(allowed[0] <= 25 && allowed[1..] == [25; 3], "{allowed:?}");
    }
}

#[test]
fn without_a_server_each_has_its_part() {
    let parts = [
        (Part::None, 0),
        (Part::OneOf(1), 10),
        (Part::OneOf(4), 2),
        (Part::OneOf(40), 1),
    ];
    for (part, own) in parts {
        let slots = SlotCount::new(10);
        let mut planner = SlotPlanner::new(&slots);
        assert!(!slots.take());
        planner.fill(&slots, part);
        assert_eq!((0..20).filter(|_| slots.take()).count(), own);
        // What is used stays so when the server is back.
        let ask = planner.ask(&slots, Duration::ZERO, IDLE_PAUSE).unwrap();
        assert_eq!((ask.total, ask.held, ask.wanted), (10, own as u64, 10));
    }
}
