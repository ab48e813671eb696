//! Properties of the simulated fleet.

use std::ops::ControlFlow;

use super::pairs::Pairs;
use super::run::Fleet;
use super::*;

/// Requests 10 ms apart; every fourth begins a new conversation of its own user.
fn lines(count: usize, users: usize) -> String {
    let line = |at: usize| {
        let (user, turn) = (at % users, at / users);
        let ids: Vec<_> = (0..=turn.min(20)).map(|block| user * 100 + block).collect();
        let tokens = ids.len() * 512;
        format!(
            r#"{{"timestamp": {}, "input_length": {tokens}, "output_length": 20, "hash_ids": {ids:?}}}"#,
            at * 10
        )
    };
    (0..count).map(|at| line(at) + "\n").collect()
}

pub(super) fn trace(count: usize, users: usize) -> Trace {
    Trace::read(lines(count, users).as_bytes(), usize::MAX).unwrap()
}

pub(super) fn run(trace: &Trace, options: &FleetOptions, policy: &str) -> Report {
    let go_on = &mut |_| ControlFlow::Continue(());
    simulate(
        trace,
        options,
        &CandidatePolicy::named(policy).unwrap(),
        go_on,
    )
    .unwrap()
}

fn change(at_ms: f64, worker: usize, kind: ChangeKind) -> Change {
    Change {
        at_ms,
        worker,
        kind,
    }
}

#[test]
fn equal_seeds_give_equal_results() {
    let (trace, options) = (trace(400, 13), FleetOptions::default());
    let seeded = |seed| FleetOptions {
        seed,
        ..options.clone()
    };
    for candidate in CandidatePolicy::all() {
        let once = run(&trace, &seeded(7), candidate.name());
        let again = run(&trace, &seeded(7), candidate.name());
        assert_eq!(once.ttft_quantiles_ms, again.ttft_quantiles_ms, "{once:?}");
        assert!((once.hit_ratio - again.hit_ratio).abs() < 1e-12);
    }
    let random = |seed| run(&trace, &seeded(seed), "random").ttft_quantiles_ms;
    assert_ne!(random(1), random(2));
}

#[test]
fn round_robin_over_two_workers_misses_a_prefix_that_one_worker_hits() {
    // Two requests with the same block: one worker has it at the second request, two do not.
    let trace = trace(2, 1);
    let fleet = |workers| FleetOptions {
        workers,
        ..FleetOptions::default()
    };
    let one = run(&trace, &fleet(1), "round_robin");
    let two = run(&trace, &fleet(2), "round_robin");
    assert!((one.hit_ratio - 1.0 / 3.0).abs() < 1e-9, "{one:?}");
    assert!(
        two.hit_ratio.abs() < 1e-9 && (two.imbalance - 4.0 / 3.0).abs() < 1e-9,
        "{two:?}"
    );
    assert!((one.ttft_max_ms - 3.2).abs() < 1e-9 && (two.ttft_max_ms - 6.4).abs() < 1e-9);
}

#[test]
fn reference_policies_equal_cache_aware_unless_caches_are_small() {
    let trace = trace(600, 29);
    let quantiles = |blocks: usize, policy| {
        let options = FleetOptions {
            workers: 4,
            speed: 20.0,
            kv_tokens: blocks * 512,
            // The references break ties by chance.
            share: Share::None,
            ..FleetOptions::default()
        };
        run(&trace, &options, policy).ttft_quantiles_ms
    };
    let expected = quantiles(10_000, "cache_aware");
    assert_eq!(expected, quantiles(10_000, "charge_auto"));
    assert_eq!(expected, quantiles(10_000, "sized_auto"));
    assert_ne!(
        quantiles(60, "cache_aware"),
        quantiles(60, "charge_auto"),
        "the fleet reports the size of its caches"
    );
}

#[test]
fn every_lease_ends_despite_deaths_and_rejections() {
    let trace = trace(300, 7);
    let options = FleetOptions {
        workers: 3,
        speed: 40.0,
        max_queued: 5,
        max_running: 2,
        decode_ms: 1.0,
        changes: vec![
            change(500.0, 0, ChangeKind::Leave),
            change(900.0, 1, ChangeKind::Flush),
            change(1500.0, 0, ChangeKind::Join),
            change(1600.0, 2, ChangeKind::Leave),
        ],
        ..FleetOptions::default()
    };
    let sized = CandidatePolicy::named("sized_3").unwrap();
    for candidate in CandidatePolicy::all().into_iter().chain([sized]) {
        let mut fleet = Fleet::new(&trace, &options, &candidate);
        for request in 0..trace.len() {
            fleet.run_until(trace.at_ms(request) / 1000.0 / options.speed);
            fleet.route(request, trace.at_ms(request) / 1000.0 / options.speed);
        }
        assert!(fleet.in_flight().0 > 0);
        fleet.run_until(f64::MAX);
        assert_eq!(fleet.in_flight(), (0, 0), "{}", candidate.name());
        let report = fleet.report(candidate.name());
        assert!(
            report.rejected > 0 && report.cut > 0 && report.rerouted > 0,
            "{report:?}"
        );
    }
}

#[test]
fn full_queues_reject_requests_which_are_no_goodput() {
    let trace = trace(100, 100);
    let options = FleetOptions {
        workers: 1,
        speed: 1e6,
        max_queued: 9,
        ..FleetOptions::default()
    };
    let report = run(&trace, &options, "round_robin");
    assert_eq!((report.requests, report.rejected), (100, 90));
    assert!((report.goodput - 0.1).abs() < 1e-9);
    assert!((report.ttft_max_ms - 10.0 * 3.2).abs() < 0.1, "{report:?}");
}

#[test]
fn without_workers_everything_is_rejected() {
    let options = FleetOptions {
        workers: 1,
        changes: vec![change(0.0, 0, ChangeKind::Leave)],
        ..FleetOptions::default()
    };
    let report = run(&trace(10, 1), &options, "round_robin");
    assert_eq!((report.rejected, report.ttft_quantiles_ms[0]), (10, 0.0));
}

#[test]
fn a_flushed_worker_misses_its_former_prefixes() {
    let flushed = FleetOptions {
        workers: 1,
        changes: vec![change(15.0, 0, ChangeKind::Flush)],
        ..FleetOptions::default()
    };
    let trace = trace(3, 1);
    let usual = run(
        &trace,
        &FleetOptions {
            workers: 1,
            ..FleetOptions::default()
        },
        "round_robin",
    );
    assert!((usual.hit_ratio - 0.5).abs() < 1e-9);
    assert!((run(&trace, &flushed, "round_robin").hit_ratio - 1.0 / 6.0).abs() < 1e-9);
}

#[test]
fn a_sized_policy_knows_the_exact_contents_of_caches() {
    // A cache for 8 of the 10 blocks that begin the prompts of 5 users.
    let options = FleetOptions {
        workers: 1,
        kv_tokens: 8 * 512,
        ..FleetOptions::default()
    };
    let (trace, policy) = (trace(60, 5), CandidatePolicy::named("sized_3").unwrap());
    let mut fleet = Fleet::new(&trace, &options, &policy);
    for request in 0..trace.len() {
        let now = trace.at_ms(request);
        fleet.run_until(now);
        let cached = fleet.cached_tokens();
        fleet.route(request, now);
        // Idle workers start at once; 16 tokens of prompt text stand for a block of 512 tokens.
        let expected = trace.tokens(request, 512) / 32 - fleet.in_flight().1;
        assert_eq!(fleet.cached_tokens() - cached, expected * 32);
    }
    assert!(fleet.cached_tokens() > 0);
}

#[test]
fn decode_interference_slows_prefill() {
    let trace = trace(400, 400);
    let options = FleetOptions {
        workers: 1,
        decode_ms: 10.0,
        max_running: 32,
        ..FleetOptions::default()
    };
    let slowed = FleetOptions {
        decode_interference: 0.9,
        ..options.clone()
    };
    let (free, slow) = (
        run(&trace, &options, "random"),
        run(&trace, &slowed, "random"),
    );
    assert!((free.ttft_max_ms - 3.2).abs() < 1e-6, "{free:?}");
    assert!(slow.ttft_mean_ms > 1.5 * free.ttft_mean_ms, "{slow:?}");
}

#[test]
fn progress_can_stop_the_run() {
    let stop = &mut |_| ControlFlow::Break(());
    let options = FleetOptions::default();
    assert!(
        simulate(
            &trace(5, 1),
            &options,
            &CandidatePolicy::named("random").unwrap(),
            stop
        )
        .is_none()
    );
}

#[test]
fn an_invalid_trace_names_its_line() {
    let read = |text: &str| {
        Trace::read(text.as_bytes(), usize::MAX)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(read("\n \n"), "the trace is empty");
    let good = lines(1, 1);
    assert!(read(&format!("{good}{{")).starts_with("line 2: EOF while parsing"));
    assert!(read(r#"{"timestamp": 1}"#).starts_with("line 1: missing field `input_length`"));
    assert!(read(&good.replace(": 0,", ": -1,")).contains("-1 is not a time"));
}

#[test]
fn lines_out_of_order_are_sorted() {
    let mut shuffled: Vec<_> = lines(3, 1).lines().map(str::to_owned).collect();
    shuffled.swap(0, 2);
    let sorted = Trace::read(shuffled.join("\n").as_bytes(), usize::MAX).unwrap();
    assert!(!sorted.was_sorted() && trace(3, 1).was_sorted());
    assert_eq!(sorted.ids(2).len(), 3);
    assert!((sorted.span_ms() - 20.0).abs() < 1e-9);
}

#[test]
fn an_unknown_policy_lists_the_known_policies() {
    let error = CandidatePolicy::named("rond_robin")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("'rond_robin'") && error.contains("round_robin, cache_aware"),
        "{error}"
    );
    assert!(
        CandidatePolicy::named("charge_x").is_err() && CandidatePolicy::named("charge_2.5").is_ok()
    );
}

#[test]
fn a_broken_rule_names_its_option() {
    FleetOptions::default().check().unwrap();
    let options = FleetOptions {
        speed: f64::NAN,
        ..FleetOptions::default()
    };
    assert!(options.check().unwrap_err().to_string().contains("'speed'"));
    let options = FleetOptions {
        changes: vec![change(0.0, 8, ChangeKind::Join)],
        ..FleetOptions::default()
    };
    assert!(
        options
            .check()
            .unwrap_err()
            .to_string()
            .contains("changes.worker")
    );
}

const FAULTS: [FaultKind; 4] = [
    FaultKind::Dead,
    FaultKind::Flapping(8_000.0),
    FaultKind::Gray(0.5),
    FaultKind::FastFailing,
];

const POLICIES: [&str; 4] = ["round_robin", "power_of_two", "least_load", "cache_aware"];

/// A fleet of eight, some of which are at fault for three quarters of the trace.
fn at_fault(kind: FaultKind, workers: &[usize], knowledge: Knowledge) -> FleetOptions {
    let fault = |worker: &usize| WorkerFault {
        from_ms: 10_000.0,
        to_ms: 70_000.0,
        worker: *worker,
        kind,
    };
    FleetOptions {
        faults: workers.iter().map(fault).collect(),
        knowledge,
        prefill_tps: 40_000.0,
        ttft_slo_ms: 300.0,
        ..FleetOptions::default()
    }
}

/// Goodput of the rules as a share of the oracle's, after checks that hold for every run.
fn share_of_oracle(kind: FaultKind, workers: &[usize], policy: &str) -> f64 {
    let trace = trace(8_000, 2_000);
    let run = |knowledge| run(&trace, &at_fault(kind, workers, knowledge), policy);
    let [rules, oracle, none] = [Knowledge::Rules, Knowledge::Oracle, Knowledge::None].map(run);
    assert_eq!((rules.failed, oracle.failed), (0, 0), "{kind:?} {policy}");
    assert_eq!(rules.ejected_well, 0, "{kind:?} {policy}");
    assert!(
        none.goodput < rules.goodput,
        "{kind:?} {policy}: no fault to speak of"
    );
    rules.goodput / oracle.goodput
}

#[test]
fn failing_workers_cost_no_more_goodput_than_an_oracle_loses() {
    for kind in FAULTS {
        for policy in POLICIES {
            let share = share_of_oracle(kind, &[1, 5], policy);
            assert!(share > 0.99, "{kind:?} {policy}: {share}");
        }
    }
}

/// A slow worker is found out when it is compared with its peers, every ten seconds; what it has
/// got by then is late.
#[test]
fn slow_worker_costs_what_it_got_before_it_was_compared_with_its_peers() {
    for policy in POLICIES {
        let share = share_of_oracle(FaultKind::Slow(20.0), &[1], policy);
        let least = if policy == "round_robin" { 0.95 } else { 0.98 };
        assert!(share > least, "{policy}: {share}");
    }
}

#[test]
fn faults_of_unknown_workers_and_impossible_sizes_are_refused_by_name() {
    let refused = |kind, worker, to_ms| {
        let fault = WorkerFault {
            from_ms: 1.0,
            to_ms,
            worker,
            kind,
        };
        let options = FleetOptions {
            faults: vec![fault],
            ..FleetOptions::default()
        };
        options.check().unwrap_err().to_string()
    };
    for (error, field) in [
        (refused(FaultKind::Dead, 8, 2.0), "faults.worker"),
        (refused(FaultKind::Dead, 0, 0.5), "faults.to_ms"),
        (refused(FaultKind::Slow(0.5), 0, 2.0), "slow"),
        (refused(FaultKind::Gray(2.0), 0, 2.0), "gray"),
        (refused(FaultKind::Flapping(0.0), 0, 2.0), "flapping"),
    ] {
        assert!(error.contains(field), "{error}");
    }
}

fn pairs(prefill: usize, decode: usize) -> FleetOptions {
    FleetOptions {
        prefill,
        decode,
        ..FleetOptions::default()
    }
}

fn run_pairs(trace: &Trace, options: &FleetOptions, policies: &str) -> Report {
    let go_on = &mut |_| ControlFlow::Continue(());
    let policies = PairPolicies::named(policies).unwrap();
    simulate_pairs(trace, options, &policies, go_on).unwrap()
}

#[test]
fn first_token_of_a_pair_comes_after_prefill_and_transfer_and_the_last_after_decode() {
    let options = FleetOptions {
        transfer_ms_per_1k_tokens: 10.0,
        decode_ms: 2.0,
        ..pairs(1, 1)
    };
    let report = run_pairs(&trace(1, 1), &options, "round_robin+least_load");
    // 512 tokens at 160 per ms, 10 ms for each 1000 of them, and 19 further tokens.
    let first = 3.2 + 5.12;
    assert!((report.ttft_max_ms - first).abs() < 1e-9, "{report:?}");
    assert!(
        (report.e2e_mean_ms - (first + 38.0)).abs() < 1e-9,
        "{report:?}"
    );
    let per_second = 20.0 / (first + 38.0) * 1000.0;
    assert!((report.output_tps - per_second).abs() < 1e-6, "{report:?}");
}

#[test]
fn loads_of_pairs_hold_tokens_to_the_end_and_are_zero_then() {
    let (trace, options) = (
        trace(200, 13),
        FleetOptions {
            decode_ms: 1.0,
            ..pairs(2, 3)
        },
    );
    let policies = PairPolicies::named("cache_aware+least_load").unwrap();
    let mut fleet = Pairs::new(&trace, &options, &policies);
    fleet.route(0, 0.0);
    assert_eq!(fleet.in_flight(), (2, 2 * 16));
    // Prefill and transfer are over, decode is not.
    fleet.run_until(0.01);
    assert_eq!(fleet.in_flight(), (1, 16));
    for request in 1..trace.len() {
        let now = trace.at_ms(request) / 1000.0;
        fleet.run_until(now);
        fleet.route(request, now);
    }
    fleet.run_until(f64::MAX);
    assert_eq!(fleet.in_flight(), (0, 0));
}

#[test]
fn each_role_of_a_pair_follows_its_own_policy() {
    let (trace, options) = (trace(400, 13), pairs(2, 3));
    let hits = |policies| run_pairs(&trace, &options, policies).hit_ratio;
    let (aware, robin) = (
        hits("cache_aware+round_robin"),
        hits("round_robin+cache_aware"),
    );
    assert!(aware > robin + 0.04, "{aware} {robin}");
    assert!((hits("round_robin") - robin).abs() < 1e-12);
    assert!(PairPolicies::named("round_robin+fastest").is_err());
}

#[test]
fn pairs_need_workers_of_both_roles_and_have_no_faults() {
    assert!(pairs(2, 0).check().is_err() && pairs(0, 2).check().is_err());
    let mut options = pairs(1, 1);
    options.check().unwrap();
    options.changes = vec![change(1.0, 0, ChangeKind::Leave)];
    assert!(options.check().is_err());
}
