//! Gateways that share limits through a simulated server.

use std::num::Wrapping;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::{Ask, Bucket, Grant, Part, Planner, Quota, RateLimit, SharedLimits};

const MS: u64 = 1_000_000;

/// The shared bucket, as the script of the server keeps it.
#[derive(Debug, Default)]
struct Server {
    full_at: u64,
    short_until: u64,
}

impl Server {
    fn lease(&mut self, limit: RateLimit, ask: Ask, now: u64) -> Grant {
        let period = limit.period.as_nanos() as u64;
        let time_of = |units: u64| u128::from(units) * u128::from(period);
        let time_of = |units| time_of(units).div_ceil(limit.units.into()) as u64;
        self.full_at = self.full_at.max(now);
        let mut units = 0;
        if ask.units < 0 {
            self.full_at -= time_of(ask.units.unsigned_abs());
        } else {
            let full = now + time_of(ask.at_once);
            let free = u128::from(full.saturating_sub(self.full_at)) * u128::from(limit.units);
            let free = (free / u128::from(period)) as u64;
            units = ask.units.unsigned_abs().min(free);
            self.full_at += time_of(units);
        }
        if units < ask.needed {
            self.short_until = now + 3000 * MS;
        }
        let short = self.short_until > now;
        Grant { units, short }
    }
}

struct Gateway {
    quota: Quota,
    planner: Planner,
    next: u64,
    /// An answer on its way, and when it comes.
    coming: Option<(u64, Grant)>,
}

impl Gateway {
    fn new(limit: RateLimit) -> Self {
        let quota = Quota::new(limit);
        let planner = Planner::new(&quota);
        Self {
            quota,
            planner,
            next: 0,
            coming: None,
        }
    }
}

/// Gateways that use one server, and requests that come to them.
struct Stage {
    limit: RateLimit,
    server: Server,
    gateways: Vec<Gateway>,
    delay: u64,
    random: Wrapping<u64>,
}

impl Stage {
    fn new(limit: RateLimit, count: usize, delay: u64) -> Self {
        let gateways = (0..count).map(|_| Gateway::new(limit)).collect();
        let mut stage = Self {
            limit,
            server: Server::default(),
            gateways,
            delay,
            random: Wrapping(delay + count as u64),
        };
        // What a quota has before it has heard of the server is replaced.
        stage.exchange(1);
        stage.exchange(1 + delay);
        stage
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random = self.random * Wrapping(6_364_136_223_846_793_005) + Wrapping(1);
        self.random.0 >> 33
    }

    fn exchange(&mut self, now: u64) {
        let count = self.gateways.len() as u64;
        for at in 0..self.gateways.len() {
            let pause = (10 + self.random() % 20) * MS;
            let gateway = &mut self.gateways[at];
            let (planner, quota) = (&mut gateway.planner, &gateway.quota);
            if let Some((when, grant)) = gateway.coming
                && when <= now
            {
                planner.granted(quota, grant);
                gateway.coming = None;
                gateway.next = now + pause;
            }
            if gateway.coming.is_none() && gateway.next <= now {
                match planner.ask(quota, count, Duration::from_nanos(now)) {
                    Some(ask) => {
                        let grant = self.server.lease(self.limit, ask, now);
                        gateway.coming = Some((now + self.delay, grant));
                    }
                    None => gateway.next = now + pause,
                }
            }
        }
    }

    /// Units that are held or on their way, less those that the bucket lacks until it is full.
    fn stock(&self, now: u64) -> f64 {
        let held = self.gateways.iter().map(|it| {
            let coming = it.coming.map_or(0, |(_, grant)| grant.units);
            it.quota.held().level as f64 + coming as f64
        });
        let lacking = self.server.full_at.saturating_sub(now) as f64;
        held.sum::<f64>() - lacking * self.limit.units as f64 / self.limit.period.as_nanos() as f64
    }

    /// Requests at `rates` per period of the limit for some periods; returns how many were let in.
    fn run(&mut self, from: u64, periods: u64, rates: impl Fn(u64) -> Vec<f64>) -> u64 {
        let period = self.limit.period.as_nanos() as u64;
        let step = (period / 2000).min(5 * MS);
        let (mut now, end, mut taken) = (from, from + periods * period, 0);
        let mut due = vec![0.0; self.gateways.len()];
        while now < end {
            self.exchange(now);
            for (at, rate) in rates((now - from) / (period / 2)).into_iter().enumerate() {
                due[at] += rate * step as f64 / period as f64;
                while due[at] >= 1.0 {
                    due[at] -= 1.0;
                    taken += u64::from(self.gateways[at].quota.take(1).is_ok());
                }
            }
            now += step;
        }
        taken
    }
}

fn limit(units: u64, seconds: u64) -> RateLimit {
    let period = Duration::from_secs(seconds);
    RateLimit { units, period }
}

fn limits() -> impl Strategy<Value = RateLimit> {
    prop_oneof![
        (20..3000_u64).prop_map(|units| limit(units, 1)),
        (30..30_000_u64).prop_map(|units| limit(units, 60)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sum_over_gateways_is_the_limit_however_requests_are_spread(
        limit in limits(),
        count in 1..9_usize,
        delay_ms in 0..40_u64,
        shares in prop::collection::vec(prop::collection::vec(0..4_u8, 8), 1..5),
        load in 1.5..6.0_f64,
    ) {
        let mut stage = Stage::new(limit, count, delay_ms * MS);
        let units = limit.units as f64;
        let rates = |half: u64| {
            // Every half period the requests come to other gateways.
            let shares = &shares[half as usize % shares.len()][..count];
            let sum: u32 = shares.iter().copied().map(u32::from).sum();
            let of = |share: &u8| f64::from(*share) / f64::from(sum.max(1)) * load * units;
            let mut rates: Vec<_> = shares.iter().map(of).collect();
            if sum == 0 {
                rates[0] = load * units;
            }
            rates
        };
        let periods = if limit.period.as_secs() == 1 { 40 } else { 6 };
        let period = limit.period.as_nanos() as u64;
        let warm_until = 13 * period;
        let warm = stage.run(10 * period, 3, rates);
        let before = stage.stock(warm_until);
        let taken = stage.run(warm_until, periods, rates);
        let all = (warm + taken) as f64;
        prop_assert!(all <= (periods + 4) as f64 * units * 1.001 + count as f64, "{all}");
        // Beyond what gateways without requests held at the beginning, or hold at the end.
        let drained = before - stage.stock(warm_until + periods * period);
        let taken = (taken as f64 - drained) / (periods as f64 * units);
        prop_assert!((0.98..1.02).contains(&taken), "{taken}");
    }
}

#[test]
fn below_the_limit_nothing_is_refused_and_a_burst_after_a_silence_finds_the_reserve() {
    let mut stage = Stage::new(limit(1000, 1), 4, 2 * MS);
    let taken = stage.run(1000 * MS, 10, |_| vec![225.0; 4]);
    assert!(taken >= 8996, "{taken}");
    stage.run(11_000 * MS, 5, |_| vec![0.0; 4]);
    let held: Vec<_> = stage
        .gateways
        .iter()
        .map(|it| it.quota.held().level)
        .collect();
    assert_eq!(held, [125; 4]);
}

#[test]
fn few_units_are_held_by_none_and_reach_the_gateway_that_asks() {
    let held = |stage: &Stage| -> Vec<_> {
        let levels = stage.gateways.iter().map(|it| it.quota.held().level);
        levels.collect()
    };
    for (units, reserve) in [(2, 0), (5, 1)] {
        let mut stage = Stage::new(limit(units, 60), 4, 2 * MS);
        stage.run(60_000 * MS, 2, |_| vec![0.0; 4]);
        assert_eq!(held(&stage), [reserve; 4]);
        let (mut now, mut let_in) = (180_000 * MS, 0);
        for at in 0..4 {
            for _ in 0..6 {
                let_in += u64::from(stage.gateways[at].quota.take(1).is_ok());
                for _ in 0..200 {
                    now += 5 * MS;
                    stage.exchange(now);
                }
            }
        }
        // Two more have come up meanwhile.
        assert!((units..=units + 2).contains(&let_in), "{let_in}");
    }
}

#[test]
fn without_a_server_each_has_its_part_and_what_it_has_then_is_replaced() {
    let limit = limit(600, 60);
    for (part, per_minute, at_once) in [
        (Part::None, 0_usize, 0_usize),
        (Part::OneOf(1), 600, 600),
        (Part::OneOf(4), 150, 150),
    ] {
        let mut gateway = Gateway::new(limit);
        let (planner, quota) = (&mut gateway.planner, &gateway.quota);
        let mut taken = Vec::new();
        for tick in 0..=3000_u64 {
            planner.fill(quota, part, Duration::from_millis(20 * tick));
            taken.push((0..9).filter(|_| quota.take(1).is_ok()).count());
        }
        let total: usize = taken.iter().sum();
        assert!((at_once + per_minute).abs_diff(total) <= 1, "{total}");
        for tick in 3000..=10_000_u64 {
            planner.fill(quota, part, Duration::from_millis(20 * tick));
        }
        assert_eq!(quota.held().level.unsigned_abs(), at_once as u64);
        let ask = planner.ask(quota, 3, Duration::from_mins(5)).unwrap();
        assert_eq!((ask.units, ask.at_once, ask.needed), (100, 300, 0));
        let grant = Grant {
            units: 70,
            short: false,
        };
        planner.granted(quota, grant);
        assert_eq!(quota.held().level, 70);
        assert_eq!(planner.leave(quota).units, -70);
    }
}

#[test]
fn request_above_a_full_quota_is_let_in_and_owed_and_so_are_tokens_counted_later() {
    let limit = limit(60_000, 60);
    let (mut server, mut gateway) = (Server::default(), Gateway::new(limit));
    let (planner, quota) = (&mut gateway.planner, &gateway.quota);
    let mut exchange = |ms: u64| {
        let ask = planner.ask(quota, 4, Duration::from_millis(ms));
        let ask = ask.unwrap();
        let grant = server.lease(limit, ask, ms * MS);
        planner.granted(quota, grant);
    };
    exchange(100_000);
    assert_eq!(quota.held().level, 7500);
    quota.take(1000).unwrap();
    assert_eq!(quota.take(8000).unwrap_err(), Duration::from_secs(1));
    exchange(100_020);
    quota.take(8000).unwrap();
    // Its answer was longer than was thought.
    quota.add(111_000);
    assert!(quota.take(0).is_err());
    exchange(100_040);
    assert!(quota.held().level < -60_000, "{:?}", quota.held());
    for second in 101..=200 {
        exchange(second * 1000);
    }
    assert!(quota.take(0).is_ok());
    // 37 500 at once, for the rest is held by others, and 1000 per second since.
    let leased = 120_000 + quota.held().level;
    assert!((125_000..=130_500).contains(&leased), "{leased}");
}

#[test]
fn bucket_is_shared_until_it_is_dropped_or_another_takes_its_name() {
    let limits = SharedLimits::default();
    let (one, two) = (
        Arc::new(Quota::new(limit(1, 1))),
        Arc::new(Quota::new(limit(2, 1))),
    );
    let live = || -> Vec<u64> {
        let listed = limits.list().into_iter();
        let live = listed.filter_map(|(_, bucket)| bucket.upgrade());
        live.map(|bucket| bucket.limit().units).collect()
    };
    limits.add("a", Arc::downgrade(&one) as _);
    assert_eq!(live(), [1]);
    limits.add("a", Arc::downgrade(&two) as _);
    assert_eq!((live(), limits.changes()), (vec![2], 2));
    drop(two);
    assert!(live().is_empty());
}
