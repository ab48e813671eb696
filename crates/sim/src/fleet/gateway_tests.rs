//! Several gateways in front of a simulated fleet.

use super::tests::{run, trace};
use super::*;

/// The same conversations behind so many gateways.
fn behind(gateways: usize, share: Share, share_loss: f64) -> Report {
    let options = FleetOptions {
        workers: 4,
        gateways,
        share,
        share_loss,
        share_delay_ms: 2.0,
        ..FleetOptions::default()
    };
    run(&trace(2000, 31), &options, "cache_aware")
}

#[test]
fn several_gateways_hit_as_often_as_one_where_they_share_and_more_often_by_rendezvous_than_by_chance()
 {
    let one = behind(1, Share::None, 0.0).hit_ratio;
    let [none, rendezvous, redis] =
        [Share::None, Share::Rendezvous, Share::Redis].map(|share| behind(4, share, 0.0));
    assert!(none.hit_ratio < one, "{none:?}");
    assert!(rendezvous.hit_ratio > 0.85 * one, "{rendezvous:?}");
    assert!(redis.hit_ratio > 0.97 * one, "{redis:?}");
    assert!(redis.share_bytes_per_sec > 0.0 && rendezvous.share_bytes_per_sec.abs() < 1e-9);
    // Without a message that arrives, nothing is shared but how ties are broken.
    let lost = behind(4, Share::Redis, 1.0).hit_ratio;
    assert!((lost - rendezvous.hit_ratio).abs() < 1e-12);
}

#[test]
fn one_gateway_sends_nothing_and_several_need_workers_without_pairs_and_faults() {
    let alone = behind(1, Share::Redis, 0.0);
    assert!(alone.share_bytes_per_sec.abs() < 1e-9);
    let several = FleetOptions {
        gateways: 2,
        ..FleetOptions::default()
    };
    several.check().unwrap();
    for wrong in [
        FleetOptions {
            prefill: 1,
            decode: 1,
            ..several.clone()
        },
        FleetOptions {
            gateways: 0,
            ..several.clone()
        },
        FleetOptions {
            share_loss: 1.1,
            ..several
        },
    ] {
        wrong.check().unwrap_err();
    }
}
